"""Ablation: variants side by side, nothing made twice, the paper's figures beside ours, bad input refused first."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from learn_rank.cli import alignment, stages
from learn_rank.cli.ablation_report import Run, summarise
from learn_rank.cli.ablation_text import markdown, text
from learn_rank.cli.config import AblateOptions
from learn_rank.cli.load import config_dir, load
from learn_rank.cli.main import main
from learn_rank.cli.variants import read_variants, variant_names
from learn_rank.data.synthetic import SyntheticOptions, synthetic_recipe, write_synthetic
from learn_rank.errors import InputError
from learn_rank.store.reader import FrozenStore

SMALL = [
    "encoder.dim=16",
    "align.width=16",
    "align.num_layers=1",
    "align.num_heads=2",
    "align.epochs=1",
    "ranker.training.epochs=1",
    "ranker.backbone.hidden_dims=[16]",
    "ranker.tables.embedding_dim=4",
]


def ablate(run: Path, *more: str) -> dict[str, Any]:
    main(["ablate", f"run_dir={run}", *SMALL, *more])
    return json.loads((run / "ablate" / "report.json").read_text())


def variants_of(*more: str) -> list[Any]:
    return read_variants(load("run", ["run_dir=nowhere", *more]))


def files_below(folder: Path) -> dict[Path, int]:
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}
    return {path: time for path, time in times.items() if path.parent != folder}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated log, prepared; ablated with two variants and seeds."""
    folder = tmp_path_factory.mktemp("ablate") / "run"
    (folder / "raw").mkdir(parents=True)
    config = load("demo", [f"run_dir={folder}"])
    write_synthetic(folder / "raw", SyntheticOptions(num_users=150, num_items=100, num_interactions=4000))
    config.dataset = synthetic_recipe(folder / "raw")
    stages.prepare(config)
    ablate(folder, "ablate.variants=[without_align,item_tower_b]", "ablate.seeds=[0,1]")
    return folder


# Running


def test_every_variant_and_seed_is_a_run_directory_that_shares_tables_and_content(run: Path) -> None:
    for variant in ("without_align", "item_tower_b", "learn"):  # learn is always there
        for seed in (0, 1):
            folder = run / "ablate" / variant / f"seed-{seed}"
            for stage in ("prepare", "extract"):
                assert os.readlink(folder / stage) == f"../../../{stage}"
            options = json.loads((folder / "align" / "manifest.json").read_text())["options"]
            assert options["seed"] == seed
            assert (options["item_tower"] == "b") == (variant == "item_tower_b")
            assert (options["objective"] == "none") == (variant == "without_align")


def test_other_commands_take_a_variants_folder_as_their_run(run: Path) -> None:
    folder = run / "ablate" / "item_tower_b" / "seed-1"
    main(["export", f"run_dir={folder}"])
    assert (folder / "export" / "item" / "manifest.json").is_file()
    assert (folder / "prepare").is_symlink()


def test_the_report_holds_means_over_the_seeds_and_differences_to_learn(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ablate(run, "ablate.variants=[without_align,item_tower_b]", "ablate.seeds=[0,1]")
    out = capsys.readouterr().out
    assert [variant["name"] for variant in report["variants"]] == ["without_align", "item_tower_b", "learn"]
    for variant in report["variants"]:
        paths = [run / "ablate" / variant["name"] / f"seed-{seed}" / "align" / "metrics.json" for seed in (0, 1)]
        tests = [json.loads(path.read_text())["test"] for path in paths]
        for metric in ("ndcg@10", "recall@10", "mrr"):
            measured = variant["metrics"][metric]
            assert measured["values"] == [test[metric] for test in tests]
            assert measured["mean"] == statistics.fmean(measured["values"])
        assert f"\n{variant['name']} " in out
    learn = report["variants"][-1]
    assert learn["parameters"] > 0
    assert report["variants"][0]["parameters"] == 0
    assert out.rstrip().endswith("report.md")
    assert "item_tower_b" in (run / "ablate" / "report.md").read_text()


def test_a_second_call_makes_nothing_again_and_more_variants_and_seeds_only_add(run: Path) -> None:
    before = files_below(run)
    ablate(run, "ablate.variants=[without_align,item_tower_b]", "ablate.seeds=[0,1]")
    unchanged = {path: path.stat().st_mtime_ns for path in before if path.name not in ("report.json", "report.md")}
    assert unchanged == {path: time for path, time in before.items() if path in unchanged}
    assert len(unchanged) > 20
    report = ablate(run, 'ablate.variants=["wide: align.width=32",without_align]', "ablate.seeds=[0,2]")
    assert [variant["name"] for variant in report["variants"]] == ["wide", "without_align", "learn"]
    new = {path.relative_to(run / "ablate").parts[:2] for path in files_below(run / "ablate").keys() - before.keys()}
    assert new >= {("wide", "seed-0"), ("wide", "seed-2"), ("without_align", "seed-2"), ("learn", "seed-2")}
    assert new.isdisjoint({("without_align", "seed-0"), ("learn", "seed-0"), ("learn", "seed-1")})
    assert unchanged.items() <= {path: path.stat().st_mtime_ns for path in unchanged}.items()


def test_a_stopped_ablation_goes_on_with_what_is_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_towers, trained = alignment.train_towers, []

    def stopped(config: Any) -> None:
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(Path(config.run_dir).parts[-2:])
        train_towers(config)

    monkeypatch.setattr(alignment, "train_towers", stopped)
    names = "ablate.variants=[positions,learned_temperature]"
    with pytest.raises(SystemExit) as exit_:
        ablate(run, names)
    assert exit_.value.code == 130
    first = run / "ablate" / "positions" / "seed-0" / "align" / "tower.pt"
    before = first.stat().st_mtime_ns
    monkeypatch.setattr(alignment, "train_towers", train_towers)
    assert len(ablate(run, names)["variants"]) == 3
    assert first.stat().st_mtime_ns == before


def test_a_yaml_of_ones_own_with_another_encoder_is_encoded_once_for_all_its_seeds(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "few_words.yaml"
    mine.write_text("title: eight dimensions\nencoder: {dim: 8}\npaper: {pet: {ndcg@10: 0.05}}\n")
    report = ablate(run, f"ablate.variants=[{mine}]", "ablate.seeds=[0,1]", "ablate.paper=pet")
    own = run / "ablate" / "few_words"
    assert (own / "extract").is_dir()
    assert not (own / "extract").is_symlink()
    for seed in (0, 1):
        assert os.readlink(own / f"seed-{seed}" / "extract") == "../extract"
        assert json.loads((own / f"seed-{seed}" / "align" / "manifest.json").read_text())["facts"]["content_dim"] == 8
    measured = report["variants"][0]["metrics"]["ndcg@10"]
    assert measured["paper"] == 0.05
    assert measured["paper_difference_percent"] == pytest.approx(100 * (0.05 / 0.0990 - 1))


def test_content_made_in_a_variants_folder_leaves_the_runs_alone_and_is_not_compared(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ablate(run, "ablate.variants=[catalogue]")
    folder = run / "ablate" / "catalogue" / "seed-0"
    with pytest.raises(SystemExit):
        main(["extract", f"run_dir={folder}", "encoder.dim=4"])
    assert f"is shared with {run / 'extract'}; remove this link first" in capsys.readouterr().err
    (folder / "extract").unlink()
    main(["extract", f"run_dir={folder}", "encoder.dim=4"])
    assert FrozenStore(run / "extract", stage="extract").dim == 16
    with pytest.raises(SystemExit):
        ablate(run, "ablate.variants=[catalogue]")
    assert "catalogue/seed-0/extract: was made here by hand" in capsys.readouterr().err


def test_towers_of_ids_need_no_content(tmp_path: Path, run: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "prepare").symlink_to(run / "prepare")
    report = ablate(bare, "ablate.variants=[positions]", "align.inputs=id")
    assert not (bare / "extract").exists()
    assert [variant["name"] for variant in report["variants"]] == ["positions", "learn"]


def test_downstream_measures_the_lift_over_the_baseline_of_the_same_seed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ablate(run, "ablate.variants=[without_align]", "ablate.seeds=[1]", "ablate.downstream=true")
    folder = run / "ablate" / "without_align" / "seed-1"
    assert os.readlink(folder / "train" / "baseline") == "../../../baseline/seed-1/train/baseline"
    assert json.loads((folder / "train" / "learn" / "manifest.json").read_text())["options"]["seed"] == 1
    uauc = json.loads((folder / "evaluate" / "report.json").read_text())["overall"]["uauc"]
    measured = report["variants"][0]["downstream"]
    assert (measured["delta_pp"], measured["interval_pp"]) == (uauc["delta_pp"], uauc["ci95_pp"])
    assert measured["baseline"] == report["variants"][1]["downstream"]["baseline"]
    assert f"{uauc['delta_pp']:+.2f}" in capsys.readouterr().out


# Variants


def test_every_recipe_of_the_package_can_be_read() -> None:
    assert {"learn", "without_align", "item_tower_b", "item_tower_c", "random_sample", "id_emb"} <= set(variant_names())
    given = {"bert_emb": "bert_emb: encoder.model=some/bert"}
    given |= {name: f"{name}: align.backbone=some/llm" for name in variant_names() if name.startswith("llm")}
    for name in variant_names():
        base = ["align.use_positions=true"] if name == "no_positions" else []
        base += ["align.learns_temperature=true"] if name == "fixed_temperature" else []
        base += ["align.objective=catalogue"] if name == "all_action" else []
        made = {variant.name: variant for variant in variants_of(f'ablate.variants=["{given.get(name, name)}"]', *base)}
        assert set(made) == {name, "learn"}
    assert made["without_align"].align.objective == "none"


def test_settings_go_on_top_of_a_recipe_and_of_the_runs_own_options() -> None:
    variant, _ = variants_of('ablate.variants=["item_tower_c: align.epochs=7 encoder.dim=5"]', "align.num_layers=3")
    assert (variant.align.item_tower, variant.align.epochs, variant.align.num_layers, variant.encoder.dim) == (
        "c",
        7,
        3,
        5,
    )
    assert variant.changes == {"align.item_tower": "c", "align.epochs": 7, "encoder.dim": 5}


def test_the_papers_figures_are_those_of_its_tables() -> None:
    industry = ("hit_rate@50", "recall@50", "hit_rate@100", "recall@100")
    table_5_and_6 = {
        "without_align": (0.0069, 0.0154, 0.0101, 0.0210),
        "item_tower_c": (0.0292, 0.0416, 0.0468, 0.0626),
        "item_tower_b": (0.0313, 0.0488, 0.0505, 0.0675),
        "random_sample": (0.0440, 0.0610, 0.0701, 0.0905),
        "learn": (0.0477, 0.0663, 0.0751, 0.0970),
        "id_emb": (0.0312, 0.0499, 0.0503, 0.0754),
        "bert_emb": (0.0357, 0.0552, 0.0576, 0.0843),
    }
    # NDCG@10 and Recall@10 of w/o Align and w/ ItemTower(c), and the improvement of LEARN over the latter
    table_4 = {
        "scientific": (0.0504, 0.0813, 0.0978, 0.1389, 8.38, 14.76),
        "instruments": (0.0164, 0.0332, 0.0679, 0.0940, 29.31, 31.91),
        "arts": (0.0308, 0.0633, 0.0900, 0.1337, 36.11, 27.23),
        "office": (0.0166, 0.0312, 0.0890, 0.1144, 31.12, 35.40),
        "games": (0.0175, 0.0361, 0.0555, 0.0891, 43.78, 50.95),
        "pet": (0.0312, 0.0427, 0.0812, 0.1010, 21.92, 27.13),
    }
    paper = {
        name: OmegaConf.load(config_dir() / "ablation" / f"{name}.yaml").get("paper", {}) for name in variant_names()
    }
    for name, figures in table_5_and_6.items():
        assert tuple(paper[name]["industry"][metric] for metric in industry) == figures
    for dataset, (ndcg, recall, ndcg_c, recall_c, more_ndcg, more_recall) in table_4.items():
        assert tuple(paper["without_align"][dataset].values()) == (ndcg, recall)
        assert tuple(paper["item_tower_c"][dataset].values()) == (ndcg_c, recall_c)
        learn = paper["learn"][dataset]
        assert 100 * (learn["ndcg@10"] / ndcg_c - 1) == pytest.approx(more_ndcg, abs=0.01)
        assert 100 * (learn["recall@10"] / recall_c - 1) == pytest.approx(more_recall, abs=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["ablate.variants=[item_tower_d]"], "no variant 'item_tower_d'; did you mean 'item_tower_"),
        (['ablate.variants=["id_em: align.width=64"]'], "did you mean 'id_emb'?"),
        (["ablate.variants=[mine.yaml]"], "no variant 'mine.yaml'; expected a YAML file or one of all_action,"),
        (["ablate.variants=[bert_emb]"], "bert_emb needs encoder.model: 'ablate.variants=[\"bert_emb: encoder.model="),
        (["ablate.variants=[llm_lora_small]"], "needs align.backbone"),
        (['ablate.variants=["x: align.layers=2"]'], "x: align has no option 'layers'; did you mean"),
        (['ablate.variants=["x: num_layers=2"]'], "is not align.KEY=VALUE"),
        (['ablate.variants=["x: align.num_heads=many"]'], "many"),
        (['ablate.variants=["x: align.num_heads=7"]'], "x: align.width 128 is not a multiple of align.num_heads 7"),
        (["ablate.variants=[without_align]", "align.inputs=id"], "without_align: align.objective=none needs content"),
        (["ablate.variants=[learn,learn]"], "two of the name 'learn'"),
        (['ablate.variants=["learn: align.width=64"]'], "learn is the run's own options"),
        (['ablate.variants=["baseline: align.width=64"]'], "'baseline' cannot be a variant's name"),
        (["align.objective=catalogue"], "item_tower_b is learn, random_sample is learn; leave out"),
        (["ablate.variants=[all_action]"], "all_action is learn"),
        (["ablate.variants=[item_tower_b]", "align.init_from=x"], "align.item_tower is that of the towers in"),
        (["ablate.variants=[]"], "ablate.variants is empty"),
        (["ablate.seeds=[1,1]"], "ablate.seeds is [1, 1]"),
        (["ablate.paper=amazon"], "expected one of scientific"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(options: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        variants_of(*options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_model_is_refused_before_anything_is_trained(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set((run / "ablate").iterdir())
    with pytest.raises(SystemExit):
        ablate(run, f'ablate.variants=[positions,"bert_emb: encoder.model={tmp_path}"]')
    assert f"encoder.model '{tmp_path}' cannot be loaded as a Hugging Face model" in capsys.readouterr().err
    assert set((run / "ablate").iterdir()) == before


def test_a_recipe_that_is_no_mapping_or_names_no_data_of_the_paper_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    for content, words in (
        ("[a]", "expected a mapping"),
        ("algn: {}", "algn"),
        ("paper: {pets: {mrr: 1}}", "no 'pets'"),
    ):
        mine.write_text(content)
        with pytest.raises(InputError, match=words):
            variants_of(f"ablate.variants=[{mine}]")


# Report


def made_run(variant: str, seed: int, ndcg: float) -> Run:
    facts = {"parameters": 4_670, "seconds": 2.0, "epochs": 3, "best_epoch": 1, "selected_by": "ndcg@10"}
    names = ("ndcg@10", "recall@10", "mrr", "recall@50", "recall@100", "hit_rate@50", "hit_rate@100")
    metrics = {**dict.fromkeys(names, ndcg), "num_users": 1234}
    return Run(variant, seed, "x", "f", facts | {"validation_metric": ndcg}, {"test": metrics}, None)


def reported(scores: dict[str, list[float]], paper: str = "") -> dict[str, Any]:
    seeds = list(range(len(next(iter(scores.values())))))
    options = AblateOptions(variants=list(scores), seeds=seeds, paper=paper)
    config = load("run", ["run_dir=nowhere", f"ablate.variants=[{','.join(scores)}]"])
    runs = [made_run(name, seed, values[seed]) for name, values in scores.items() for seed in seeds]
    return summarise(read_variants(config), runs, options, dataset="shop")


def test_a_difference_is_told_from_chance_by_pairing_the_seeds() -> None:
    # levels of the seeds differ by far more than variants do; paired, b is below learn in every seed alike
    learn = [0.10, 0.20, 0.30]  # t(2) = 4.303
    report = reported({"item_tower_b": [v - 0.010 for v in learn], "item_tower_c": [0.11, 0.19, 0.31], "learn": learn})
    b, c, ours = (variant["metrics"]["ndcg@10"] for variant in report["variants"])
    # c: 0.01, -0.01, 0.01, mean 0.0033, standard error 0.0067
    assert (b["is_within_spread"], c["is_within_spread"], ours["is_within_spread"]) == (False, True, None)
    assert b["difference_percent"] == pytest.approx(-5.0)
    assert ours["std"] == pytest.approx(0.1)
    # b and c: -0.02, 0, -0.02, mean -0.0133, standard error 0.0067
    assert report["pairs_within_spread"] == [["item_tower_b", "item_tower_c"], ["item_tower_c", "learn"]]
    line = next(line for line in text(report).splitlines() if line.startswith("item_tower_c"))
    assert line.split()[:4] == ["item_tower_c", "0.2033", "±0.1007", "+1.7~"]
    assert "in ndcg@10: item_tower_b and item_tower_c." in text(report)


def test_one_seed_says_nothing_about_chance() -> None:
    report = reported({"item_tower_b": [0.1], "learn": [0.2]})
    measured = report["variants"][0]["metrics"]["ndcg@10"]
    assert (measured["std"], measured["is_within_spread"], report["pairs_within_spread"]) == (None, None, None)
    assert "One seed" in text(report)
    assert "±" not in text(report)


def test_tables_fit_a_terminal_and_show_the_papers_figures_and_differences() -> None:
    names = {name: [0.0123, 0.0125, 0.0119] for name in ("without_align", "item_tower_b", "random_sample", "learn")}
    report = reported(names, paper="industry")
    printed = text(report)
    assert max(map(len, printed.splitlines())) < 120
    assert report["metrics"] == ["hit_rate@50", "recall@50", "hit_rate@100", "recall@100"]
    line = next(line for line in printed.splitlines() if line.startswith("without_align"))
    ours = ["0.0122", "±0.0003", "+0.0~"]
    assert line.split() == ["without_align", *ours, "0.0069", "-85.5", *ours, "0.0154", "-76.8"]
    assert "89M" in printed
    page = markdown(report)
    assert "w/ RandomSample (Table 5)" in page
    assert "align.second_stage=random" in page
    assert page.count("| --- |") >= 3


def test_a_window_that_nobody_is_ranked_in_gives_dashes() -> None:
    report = reported({"item_tower_b": [0.1], "learn": [0.0]})
    for variant in report["variants"]:
        variant["metrics"]["mrr"] |= {"mean": None, "difference_percent": None}
    assert "-" in text(report)
    assert report["variants"][0]["metrics"]["ndcg@10"]["difference_percent"] is None
