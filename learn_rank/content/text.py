"""Item fields -> one text per item, the prompt of the encoder (paper, Fig. 3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from learn_rank.errors import InputError
from learn_rank.schema import ITEM_ID


@dataclass
class TextOptions:
    """How the text fields of an item become one text."""

    template: str = field(default="{name}: {value}", metadata={"help": "how one field reads"})
    separator: str = field(default=". ", metadata={"help": "between fields"})
    max_chars_per_field: int = field(default=2000, metadata={"help": "longer values are cut"})

    def __post_init__(self) -> None:
        if "{value}" not in self.template:
            raise InputError(f"encoder.text.template is '{self.template}', it must contain {{value}}")
        if self.max_chars_per_field < 1:
            raise InputError(f"encoder.text.max_chars_per_field is {self.max_chars_per_field}, must be 1 or more")


def compose_texts(items: pa.Table, options: TextOptions) -> list[str]:
    """One text per item; fields that are null or blank are left out, an item without any gives ''.

    >>> items = pa.table({"item_id": [1, 2], "title": ["Heat", None], "genres": ["Crime|Drama", " "]})
    >>> compose_texts(items, TextOptions())
    ['title: Heat. genres: Crime|Drama', '']
    """
    names = [name for name in items.column_names if name != ITEM_ID]
    columns = [items[name].to_pylist() for name in names]
    return [
        options.separator.join(
            options.template.format(name=name, value=value.strip()[: options.max_chars_per_field])
            for name, value in zip(names, values, strict=True)
            if value is not None and value.strip()
        )
        for values in zip(*columns, strict=True)
    ]
