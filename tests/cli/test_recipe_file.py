"""A YAML file as text and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from learn_rank.cli.load import load
from learn_rank.cli.recipe_file import parse_mapping, read_recipe
from learn_rank.errors import InputError

LOG = "interactions: {files: log.parquet, labels: {click: click}}\n"


def recipe(tmp_path: Path, text: str) -> object:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return load("run", [f"dataset={path}", "run_dir=x"]).dataset


# Known answers


def test_scalars_are_the_text_that_is_written() -> None:
    text = "{a: 0, b: yes, c: 2024_05, d: 1e5, on: off, 1: 007, e: 0x10, f: 2024-01-01, g: '${x}', h: .nan, i: 'null'}"
    assert parse_mapping(text, where="r") == {
        "a": "0",
        "b": "yes",
        "c": "2024_05",
        "d": "1e5",
        "on": "off",
        "1": "007",
        "e": "0x10",
        "f": "2024-01-01",
        "g": "${x}",
        "h": ".nan",
        "i": "null",
    }
    assert parse_mapping("a:\nb: null\nc: ~\nd: ''\n", where="r") == {"a": None, "b": None, "c": None, "d": ""}
    assert parse_mapping("a: &x [1, {b: 2}]\nc: *x\n", where="r") == {"a": ["1", {"b": "2"}], "c": ["1", {"b": "2"}]}
    assert parse_mapping("a: !!str 5\nb: |\n  x\n  y\n", where="r") == {"a": "5", "b": "x\ny\n"}


def test_names_of_columns_and_features_are_what_they_say(tmp_path: Path) -> None:
    parsed = recipe(
        tmp_path,
        "interactions: {files: 2024_05, user_id: 0, item_id: 2024_05, timestamp: no, labels: {yes: 1e5, 1: true}}\n"
        "items: {files: items.parquet, text: [on, 'null', 1]}\n"
        "sparse: {on: {column: interactions.off, min_count: 2}, 2: {column: interactions.2}}\n"
        "split: {validation_fraction: 2e-1, validation_start: , num_folds: 3}\n",
    )
    log = parsed.interactions
    assert (log.files, log.user_id, log.item_id, log.timestamp) == ("2024_05", "0", "2024_05", "no")
    assert log.labels == {"yes": "1e5", "1": "true"}
    assert parsed.items.text == ["on", "null", "1"]
    assert {name: (feature.column, feature.min_count) for name, feature in parsed.sparse.items()} == {
        "on": ("interactions.off", 2),
        "2": ("interactions.2", 1),
    }
    assert (parsed.split.validation_fraction, parsed.split.validation_start, parsed.split.num_folds) == (0.2, None, 3)


def test_no_interpolation_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "leaked")
    parsed = recipe(
        tmp_path, LOG + "name: ${oc.env:SECRET}\nnotes: ['${name}', '${', '???']\nusers: {files: '${missing}'}\n"
    )
    assert (parsed.name, parsed.users.files) == ("${oc.env:SECRET}", "${missing}")
    assert parsed.notes == ["${name}", "${", "???"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert recipe(tmp_path, "\ufeff" + LOG).interactions.files == "log.parquet"


# Bad input

LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected a mapping"),
        (b"[]", "expected a mapping"),
        (b"- a", "expected a mapping"),
        (b"a", "expected a mapping"),
        (b"{", "not readable as YAML: line "),
        (b"a: b: c", "not readable as YAML: line 1"),
        (b"\ta: 1", "not readable as YAML"),
        (b"a: 1\nb: \x01", "not readable as YAML"),
        (b"\x00", "not readable as YAML"),
        (bytes(range(128, 256)), "byte 0 is not UTF-8"),
        ("a: 1".encode("utf-16"), "byte 0 is not UTF-8"),
        (b"a: 1\n---\nb: 2\n", "line 2: a second document"),
        (b"%YAML 9.9\n---\na: 1", "not readable as YAML"),
        (b"a: 1\nb: 2\na: 3\n", "line 3: key 'a' stands there twice"),
        (b"a: {x: 1, 'x': 2}", "line 1: key 'x' stands there twice"),
        (b"a: !!python/object/apply:os.system ['touch pwned']", "line 1: tag 'tag:yaml.org,2002:python/object"),
        (b"a: !!binary abc", "tag "),
        (b"a: !x y", "tag '!x'"),
        (b"? [a]\n: b", "line 1: a key that is not a name"),
        (b"a: *b", "line 1: '*b' stands for nothing"),
        (b"a: &b [*b]", "line 1: '*b' stands for nothing that was written before, or for itself"),
        (b'a: "x\\0y"', "line 1: a text with the character NUL"),
        (LAUGHS.encode(), "more than 100,000 entries, with what aliases repeat"),
        (b"a: " + b"[" * 20_000 + b"]" * 20_000, "nest"),
        (b"a: " + b"{a: " * 100, "nested more than 20 deep"),
        (b"a: " + b"x" * (1 << 20), "more than 1 MiB"),
        (b"a: [" + b"x," * 200_000 + b"x]", "more than 100,000 entries"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(path))


def test_a_recipe_that_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.yaml", "folder.yaml", "none.yaml"):
        with pytest.raises(InputError, match=f"{name}: no such file"):
            load("run", [f"dataset={tmp_path / name}", "run_dir=x"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("interactions: null", "interactions is null, expected a mapping"),
        ("interactions: a", "interactions is 'a', expected a mapping"),
        ("interactions: [a]", "interactions is a list, expected a mapping"),
        (LOG + "items: {text: {a: b}}", "items.text is a mapping, expected a list"),
        (LOG + "split: {num_folds: two}", "split.num_folds is 'two', expected a whole number"),
        (LOG + "split: {validation_fraction: .nan}", "split.validation_fraction is '.nan', expected a number"),
        (LOG + "split: {leave_one_out: maybe}", "split.leave_one_out is 'maybe', expected true or false"),
        (LOG + "sparse: {a: interactions.a}", "sparse.a is 'interactions.a', expected a mapping"),
        (LOG + "sparse: {a: {column: null}}", "sparse.a.column is null, expected a text"),
        (LOG + "dense: {a: [b]}", "dense.a is a list, expected a text or a mapping"),
        (LOG + "<<: {a: b}", "no key '<<'"),
        (LOG + "interaction: {}", "no key 'interaction'; did you mean 'interactions'?"),
    ],
)
def test_what_a_recipe_cannot_say_names_file_and_key(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        recipe(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'r.yaml'}: ")
    assert said in str(error.value)
