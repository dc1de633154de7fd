"""`segment`, `evaluate` and `evaluate-merge` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.parquet, scores/ (two files) and exposures.parquet of 300 users."""
    path, rng = tmp_path_factory.mktemp("evaluations"), np.random.default_rng(0)
    history = rng.integers(1, 80, 300)
    pq.write_table(
        pa.table({"user_id": np.repeat(np.arange(300), history), "item_id": rng.integers(0, 40, history.sum())}),
        path / "train.parquet",
    )
    users = np.repeat(np.arange(310), 12)
    signal, first, second = rng.normal(size=(3, len(users)))
    click = (rng.random(len(users)) < 1 / (1 + np.exp(1 - signal))).astype(np.int8)
    scores = pa.table(
        {
            "user_id": users,
            "item_id": rng.integers(0, 45, len(users)),
            "click": click,
            "conversion": (click & (rng.random(len(users)) < 0.4)).astype(np.int8),
            "old": (1 / (1 + np.exp(1 - 0.3 * signal - first))).astype(np.float32),
            "new": (1 / (1 + np.exp(1 - 0.9 * signal - second))).astype(np.float32),
            "revenue": np.round(click * rng.gamma(2, 5, len(users)), 2),
            "group": np.where(users % 2 == 0, "a", "b").tolist(),
        }
    )
    (path / "scores").mkdir()
    pq.write_table(scores.slice(0, 2000), path / "scores" / "0.parquet")
    pq.write_table(scores.slice(2000), path / "scores" / "1.parquet", row_group_size=300)
    main(["segment", f"log={path / 'train.parquet'}", f"out={path / 'segments'}"])
    return path


def report(folder: Path, *words: str, out: str = "report") -> dict:
    main(["evaluate", f"predictions={folder / 'scores'}", f"out={folder / out}", *words])
    return json.loads((folder / out / "report.json").read_text())


def segments(folder: Path) -> list[str]:
    return [f"{entity}_segments={folder}/segments/{entity}_segments.parquet" for entity in ("user", "item")]


def test_segment_writes_what_evaluate_reads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(folder, "label=click", "baseline=old", "treatment=new", *segments(folder))
    assert found["overall"]["uauc"]["delta_pp"] > 5
    assert [one["segment"] for one in found["segments"]] == ["cold_start", "long_tail", "others"] * 2
    assert sum(one["num_rows"] for one in found["segments"][:3]) == 310 * 12
    assert found["segment_rules"]["user"]["num_without_history"] == 10
    assert "new lifts UAUC" in capsys.readouterr().out
    assert (folder / "report" / "report.html").stat().st_size > 10_000


def test_one_model_several_labels_and_revenue(folder: Path) -> None:
    words = ("label=[click,conversion,conversion|click]", "baseline=old", "value=revenue")
    found = report(folder, *words, "treatment=new", out="several")
    assert [block["label"] for block in [found, *found["further"]]] == ["click", "conversion", "conversion|click"]
    assert [one["k"] for one in found["overall"]["value"]] == [1, 5, 10]
    alone = report(folder, "label=click", "baseline=old", out="alone")
    assert alone["treatment"] is None
    assert alone["overall"]["uauc"]["baseline"] == pytest.approx(found["overall"]["uauc"]["baseline"], abs=1e-12)
    low, high = alone["overall"]["uauc"]["baseline_ci95"]
    assert low < alone["overall"]["uauc"]["baseline"] < high


def test_parts_merge_into_the_same_report(folder: Path) -> None:
    words = ["label=click", "baseline=old", "treatment=new", *segments(folder)]
    for number in range(2):
        state = f"state={folder / f'part{number}'}"
        main(["evaluate", f"predictions={folder / 'scores'}", state, f"part={number}/2", *words])
    main(["evaluate-merge", f"states=[{folder / 'part0'},{folder / 'part1'}]", f"out={folder / 'merged'}"])
    merged = json.loads((folder / "merged" / "report.json").read_text())
    whole = report(folder, *words, out="whole")
    for name in ("uauc", "wuauc", "auc"):
        assert merged["overall"][name]["delta_pp"] == pytest.approx(whole["overall"][name]["delta_pp"], rel=1e-9)
    assert merged["segment_rules"] == whole["segment_rules"]


def test_an_ab_test_is_reported_by_segment(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["variant=group", "baseline=a", "treatment=b", "label=click", "value=revenue", *segments(folder)]
    found = report(folder, *words, out="experiment")
    assert found["kind"] == "experiment"
    assert {one["segment"] for one in found["segments"]} == {"cold_start", "long_tail", "others"}
    assert "click" in capsys.readouterr().out


def test_results_hold_what_they_should_and_no_scratch(folder: Path) -> None:
    report(folder, "variant=group", "baseline=a", "treatment=b", "label=click", out="left")
    names = ["manifest.json", "report.html", "report.json", "report.md"]
    assert sorted(path.name for path in (folder / "left").iterdir()) == names
    names = ["item_segments.parquet", "manifest.json", "user_segments.parquet"]
    assert sorted(path.name for path in (folder / "segments").iterdir()) == names


def test_the_planned_split_of_an_ab_test_can_be_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["variant=group", "baseline=a", "treatment=b", "label=click"]
    assert report(folder, *words, out="even")["sample_ratio"]["p_value"] == 1.0
    found = report(folder, *words, "expected_share=0.25", out="uneven")
    assert found["sample_ratio"]["expected_share"] == 0.25
    assert found["sample_ratio"]["p_value"] < 1e-9
    assert "where treatment was to get 25 %" in capsys.readouterr().out.replace("\n", " ")


def test_segments_of_an_ab_test_may_be_called_as_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    scores = pq.read_table(folder / "scores")
    tier = np.array(["gold", "silver"])[scores["user_id"].to_numpy() % 3 // 2]
    pq.write_table(scores.append_column("tier", pa.array(tier)), "tiers.parquet")
    (folder / "tier").mkdir()
    words = ["predictions=tiers.parquet", "label=click", "user_segments=tier"]
    main(["evaluate", *words, "variant=group", "baseline=a", "treatment=b", "out=by_tier"])
    main(["evaluate", *words, "baseline=old", "treatment=new", "out=scores_by_tier"])
    for out in ("by_tier", "scores_by_tier"):
        found = json.loads((folder / out / "report.json").read_text())
        assert [one["segment"] for one in found["segments"]] == ["gold", "silver"]
        assert found["inputs"]["user_segments"] == "column tier"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["label=click", "baseline=old"], "out is missing"),
        (["label=click", "baseline=old", "out=x", "state=y"], "state and out are both set"),
        (["label=click", "baseline=old", "out=x", "part=0/2"], "add state=FOLDER"),
        (["label=click", "baseline=old", "state=x", "part=2/2"], "expected K/N with K from 0 to N - 1"),
        (["label=click", "baseline=old", "out=x", "user_segments=nothing"], "no such file, and no such column"),
        (["label=click", "baseline=ald", "out=x"], "did you mean 'old'"),
        (["label=click", "baseline=old", "out=x", "memory_limit=lots"], "expected a size such as"),
        (["label=click", "baseline=old", "out=x", "variant=group"], "name two of its values"),
        (
            ["label=click", "baseline=a", "treatment=b", "out=x", "variant=group", "expected_share=2"],
            "expected_share is",
        ),
        (["label=click", "baseline=a", "treatment=b", "out=x", "variant=group", "spill_dir=gone"], "no such folder"),
        (["label=click", "baseline=a", "treatment=z", "out=x", "variant=group"], "is never 'z'; it holds 'a'"),
    ],
)
def test_what_the_user_can_fix_is_one_line(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "predictions=scores", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (folder / "x").exists()


def test_segment_says_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for words, said in (
        (["log=nowhere", "out=x"], "nowhere"),
        ([f"log={folder / 'train.parquet'}", f"out={folder / 'x'}", "user_id=uid"], "uid"),
        (["log=train.parquet", "out=x", "memory_limit=lots"], "expected a size such as"),
    ):
        with pytest.raises(SystemExit):
            main(["segment", *words])
        assert said in capsys.readouterr().err
