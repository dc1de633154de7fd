"""Item fields -> one text per item, the prompt of the encoder (paper, Fig. 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from learn_rank.errors import InputError
from learn_rank.schema import ITEM_ID

T = TypeVar("T")
_STRING = pa.large_string()
_NOTHING = pa.scalar("", _STRING)
_BETWEEN = "\x1f"  # stands between the values of a field while they are made words


@dataclass
class TextOptions:
    """How the text fields of an item become one text."""

    fields: list[str] = field(
        default_factory=list,
        metadata={
            "help": "text fields in their order in the text; a|b is the first of the two that the log has; empty: all "
            "text fields of the log"
        },
    )
    names: dict[str, str] = field(
        default_factory=dict,
        metadata={"help": "what the text calls a field, by field: +encoder.text.names={genres: genre}"},
    )
    prefix: str = field(default="", metadata={"help": "text before the first field"})
    template: str = field(
        default="{name}: {value}", metadata={"help": "text of one field; {name} and {value} are filled in"}
    )
    separator: str = field(default=". ", metadata={"help": "text between two fields"})
    max_chars_per_field: int = field(
        default=2000, metadata={"help": "longest value of a field, in characters; a longer one is cut"}
    )
    max_chars: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "longest value of single fields, in characters: +encoder.text.max_chars={plot: 500}"},
    )
    words: bool = field(
        default=False,
        metadata={
            "help": "each value of a field becomes one word, by the template: for features such as tags, not for prose"
        },
    )
    split_at: str = field(
        default=",|;", metadata={"help": "words: the characters that separate the values of one field"}
    )

    def __post_init__(self) -> None:
        if "{value}" not in self.template:
            raise InputError(f"encoder.text.template is '{self.template}', it must contain {{value}}")
        for key, limit in {"max_chars_per_field": self.max_chars_per_field, **self.max_chars}.items():
            if limit < 1:
                raise InputError(f"encoder.text: at most {limit} characters of '{key}', must be 1 or more")
        if self.words and not self.split_at:
            raise InputError("encoder.text.split_at is empty; give the characters between values, such as ',|;'")


class TextField(NamedTuple):
    """A column of the items, and what the text calls it."""

    column: str
    name: str
    max_chars: int


def text_fields(columns: Sequence[str], options: TextOptions, *, where: str) -> list[TextField]:
    """The fields that make the text, out of the items' columns; InputError for one that is not there.

    >>> text_fields(["item_id", "title", "categories"], TextOptions(fields=["category|categories"]), where="items")
    [TextField(column='categories', name='category', max_chars=2000)]
    """
    present = [column for column in columns if column != ITEM_ID]
    chosen = []
    for wanted in options.fields or present:
        alternatives = [wanted] if wanted in present else wanted.split("|")
        column = next((name for name in alternatives if name in present), None)
        if column is None:
            raise InputError(
                f"{where}: no text field '{wanted}', which encoder.text.fields names; it has "
                f"{', '.join(present) or 'none'}; set encoder.text.fields, or items.text in the dataset recipe"
            )
        keys = (column, alternatives[0])
        name = _first(options.names, keys, alternatives[0])
        chosen.append(TextField(column, name, _first(options.max_chars, keys, options.max_chars_per_field)))
    known = {name for wanted in options.fields for name in wanted.split("|")} | set(present)
    for option, keys_given in (("names", options.names), ("max_chars", options.max_chars)):
        unknown = next((key for key in keys_given if key not in known), None)
        if unknown is not None:
            raise InputError(f"{where}: no text field '{unknown}', which encoder.text.{option} names")
    return chosen


def compose_texts(items: pa.RecordBatch, fields: Sequence[TextField], options: TextOptions) -> pa.Array:
    """[N] texts (large_string) of [N] items; fields that are null or blank are left out, an item without any gives ''.

    >>> items = pa.record_batch({"item_id": [1, 2], "title": ["Heat", None], "genres": ["Crime|Drama", " "]})
    >>> fields = text_fields(items.schema.names, TextOptions(), where="items")
    >>> compose_texts(items, fields, TextOptions()).to_pylist()
    ['title: Heat. genres: Crime|Drama', '']

    With `words` every value becomes one word, so that 39 as a tag and 39 as an age have nothing in common:

    >>> options = TextOptions(words=True, template="{name}_{value}", separator=" ")
    >>> compose_texts(items, fields, options).to_pylist()
    ['title_Heat genres_Crime genres_Drama', '']
    """
    text = pa.array([""] * items.num_rows, _STRING)
    for text_field in fields:
        value = _field_text(items.column(text_field.column), text_field, options)
        after = pc.if_else(pc.equal(text, _NOTHING), value, _joined(text, _string(options.separator), value))
        text = pc.if_else(pc.equal(value, _NOTHING), text, after)
    return pc.if_else(pc.equal(text, _NOTHING), text, _joined(_string(options.prefix), text))


def _field_text(values: pa.Array, text_field: TextField, options: TextOptions) -> pa.Array:
    """The field as it reads in the text; '' where there is nothing."""
    values = pc.utf8_trim_whitespace(pc.fill_null(values.cast(_STRING), ""))
    values = pc.utf8_slice_codeunits(values, 0, text_field.max_chars)
    if options.words:
        return _as_words(values, options.template.replace("{name}", re.sub(r"\W", "_", text_field.name)), options)
    template = options.template.replace("{name}", text_field.name)
    pieces = [part for piece in template.split("{value}") for part in (values, _string(piece))][1:]
    return pc.if_else(pc.equal(values, _NOTHING), values, _joined(*pieces))


def _as_words(values: pa.Array, template: str, options: TextOptions) -> pa.Array:
    r"""Each of a field's values through the template, as one word of letters, digits and underscores.

    Word splitters such as scikit-learn's, \b\w\w+\b, keep such a word whole; '-' and '.' would end it.
    """
    between = re.escape(options.split_at)
    values = pc.replace_substring_regex(values, rf"\s*[{between}][\s{between}]*", _BETWEEN)
    values = pc.utf8_trim(values, _BETWEEN)
    values = pc.replace_substring_regex(values, rf"[^\pL\pN_{_BETWEEN}]", "_")
    word = template.replace("\\", r"\\").replace("{value}", r"\1")
    values = pc.replace_substring_regex(values, rf"([^{_BETWEEN}]+)", word)
    return pc.replace_substring(values, _BETWEEN, options.separator)


def _joined(*parts: pa.Array | pa.Scalar) -> pa.Array:
    return pc.binary_join_element_wise(*parts, _NOTHING)


def _string(value: str) -> pa.Scalar:
    return pa.scalar(value, _STRING)


def _first(options: Mapping[str, T], keys: Sequence[str], default: T) -> T:
    return next((options[key] for key in keys if key in options), default)
