from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from learn_rank.cli.load import config_dir
from learn_rank.content.catalogue import read_catalogue
from learn_rank.content.encoder import EncoderOptions
from learn_rank.content.encoders.tfidf import TfidfSvd
from learn_rank.content.text import TextOptions, compose_texts, text_fields
from learn_rank.errors import InputError

KUAIRAND = Path(os.environ.get("LEARN_RANK_DATA", "")) / "kuairand-pure-2w" / "items.parquet"
GRINDER = {
    "title": "Hand grinder",
    "category": "Kitchen",
    "brand": "Moli",
    "price": "29.90",
    "keywords": "coffee, steel",
    "attributes": "colour: black",
}


def texts_of(columns: dict[str, list[str | None]], options: TextOptions) -> list[str]:
    rows = len(next(iter(columns.values())))
    items = pa.record_batch({"item_id": list(range(rows)), **columns})
    return compose_texts(items, text_fields(items.schema.names, options, where="items.parquet"), options).to_pylist()


def text_of(fields: dict[str, str | None], options: TextOptions) -> str:
    return texts_of({name: [value] for name, value in fields.items()}, options)[0]


def recipe(name: str) -> TextOptions:
    path = config_dir() / "prompt" / f"{name}.yaml"
    assert path.read_text().startswith("# @package encoder.text\n")
    options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TextOptions), OmegaConf.load(path)))
    assert isinstance(options, TextOptions)
    return options


# Known answers


def test_all_fields_in_the_logs_order_unless_others_are_named() -> None:
    fields = {"title": "Heat", "genres": "Crime|Drama", "year": "1995"}
    assert text_of(fields, TextOptions()) == "title: Heat. genres: Crime|Drama. year: 1995"
    assert text_of(fields, TextOptions(fields=["year", "title"])) == "year: 1995. title: Heat"


def test_prefix_template_separator_and_names_make_the_prompt() -> None:
    options = TextOptions(
        prefix="A film. ", template="<{name}>{value}</{name}>", separator="\n", names={"genres": "genre"}
    )
    assert text_of({"title": "Heat", "genres": "Crime"}, options) == "A film. <title>Heat</title>\n<genre>Crime</genre>"


def test_long_fields_are_cut_each_by_its_own_limit_in_characters() -> None:
    options = TextOptions(template="{value}", max_chars_per_field=3, max_chars={"plot": 5})
    assert text_of({"title": "abcdef", "plot": "ümläute"}, options) == "abc. ümläu"


def test_null_and_blank_fields_are_left_out_and_an_item_without_any_has_no_text_not_even_the_prefix() -> None:
    columns: dict[str, list[str | None]] = {
        "title": ["Heat", None, None, "  "],
        "plot": [None, "a heist", None, "\t\n"],
        "cast": ["Pacino", " x ", None, ""],
    }
    texts = texts_of(columns, TextOptions(prefix="Item: "))
    assert texts == ["Item: title: Heat. cast: Pacino", "Item: plot: a heist. cast: x", "", ""]


def test_braces_and_backslashes_of_templates_and_values_stand_for_themselves() -> None:
    assert (
        text_of({"a": "{value} {0} \\1"}, TextOptions(template='{"{name}": "{value}"}')) == '{"a": "{value} {0} \\1"}'
    )


# Prompts


def test_the_prompts_of_the_paper_are_recipes() -> None:
    assert text_of(GRINDER, recipe("amazon")) == "title: Hand grinder. category: Kitchen. brand: Moli"
    assert text_of(GRINDER, recipe("industry")) == (
        "title: Hand grinder. category: Kitchen. brand: Moli. price: 29.90. keywords: coffee, steel. "
        "attributes: colour: black"
    )
    assert text_of(GRINDER, recipe("plain")) == text_of(GRINDER, TextOptions())
    assert text_of({"text": "Hand grinder Moli"}, recipe("bare")) == "Hand grinder Moli"


def test_the_amazon_prompt_reads_the_same_where_the_log_says_categories() -> None:
    fields = {"brand": "Moli", "categories": "Kitchen", "title": "Hand grinder"}
    assert text_of(fields, recipe("amazon")) == text_of(GRINDER, recipe("amazon"))


def test_every_prompt_is_tested() -> None:
    tested = {"plain", "bare", "amazon", "industry", "features"}
    assert {path.stem for path in (config_dir() / "prompt").iterdir()} == tested


def test_features_become_one_word_per_value_that_tfidf_keeps_apart() -> None:
    columns: dict[str, list[str | None]] = {
        "tag": ["39,12", "2", None, " 5 ; 6|7 "],
        "music_type": ["9.0", "2", "-1", ","],
        "kind": ["UGC video", "Größe", "2022-04-10", None],
    }
    texts = texts_of(columns, recipe("features"))
    assert texts == [
        "tag_39 tag_12 music_type_9_0 kind_UGC_video",
        "tag_2 music_type_2 kind_Größe",
        "music_type__1 kind_2022_04_10",
        "tag_5 tag_6 tag_7",
    ]
    options = EncoderOptions(dim=3, min_count=1)
    words = TfidfSvd(options, TfidfSvd.fit(texts, options)).words
    assert sorted(words) == sorted(word.lower() for text in texts for word in text.split())


def test_features_keep_a_name_of_two_words_and_one_letter_values_whole() -> None:
    text = text_of({"main tag": "a,b", "x": "1"}, recipe("features"))
    assert text == "main_tag_a main_tag_b x_1"
    assert re.findall(r"(?u)\b\w\w+\b", text) == text.split()  # scikit-learn's idea of a word


@pytest.mark.skipif(not KUAIRAND.is_file(), reason="set LEARN_RANK_DATA to a folder that holds kuairand-pure-2w")
def test_features_of_a_log_of_videos_become_words() -> None:
    items = pq.read_table(KUAIRAND, columns=["item_id", "tag", "upload_type"]).slice(0, 500)
    columns = {name: items[name].to_pylist() for name in ("tag", "upload_type")}
    texts = texts_of(columns, recipe("features"))
    assert any("," in (tag or "") for tag in columns["tag"])
    for tag, kind, text in zip(*columns.values(), texts, strict=True):
        expected = [f"tag_{value}" for value in (tag or "").split(",") if value] + (
            [f"upload_type_{kind}"] if kind else []
        )
        assert text.split() == expected


# Bad input


def test_a_field_that_the_log_does_not_have_is_named_with_those_it_has() -> None:
    with pytest.raises(InputError, match=r"items\.parquet: no text field 'price', .* it has title, brand; set"):
        text_of({"title": "a", "brand": "b"}, TextOptions(fields=["title", "price"]))
    with pytest.raises(InputError, match=r"no text field 'category\|categories'"):
        text_of({"title": "a"}, recipe("amazon"))
    with pytest.raises(InputError, match=r"no text field 'titel', which encoder\.text\.names names"):
        text_of({"title": "a"}, TextOptions(names={"titel": "name"}))
    with pytest.raises(InputError, match=r"no text field 'plot', which encoder\.text\.max_chars names"):
        text_of({"title": "a"}, TextOptions(max_chars={"plot": 10}))


def test_a_log_without_text_fields_is_told_where_to_name_them(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": [1, 2]}), tmp_path / "items.parquet")
    with pytest.raises(
        InputError, match=r"no text field 'title', .* it has none; .* items\.text in the dataset recipe"
    ):
        read_catalogue(tmp_path / "items.parquet", TextOptions(fields=["title"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{name}"}, r"encoder\.text\.template is '{name}', it must contain {value}"),
        ({"max_chars_per_field": 0}, "at most 0 characters of 'max_chars_per_field'"),
        ({"max_chars": {"plot": -1}}, "at most -1 characters of 'plot'"),
        ({"words": True, "split_at": ""}, r"encoder\.text\.split_at is empty"),
    ],
)
def test_text_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextOptions(**options)
