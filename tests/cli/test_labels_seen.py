"""What the towers have learned from, through the command line: recorded, handed to the ranker, said in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from learn_rank.alignment.options import AlignOptions
from learn_rank.artifact import Manifest, read_manifest
from learn_rank.cli.labels_seen import leak_notes, with_labels_seen
from learn_rank.cli.main import main
from learn_rank.schema import LABELS_SEEN
from tests.cli.test_pipeline import SMALL

LEAK = "learned from the labels of the ranker's training rows"


def demo(run: Path, *more: str) -> None:
    main(["demo", f"run_dir={run}", *SMALL, "arms=[baseline,learn]", *more])


def facts(folder: Path, stage: str) -> dict[str, Any]:
    return read_manifest(folder, stage=stage).facts


def vectorless(run: Path, *more: str) -> np.ndarray:
    """Of the training rows, in their order: whether they are given neither vector."""
    main(["export-features", f"run_dir={run}", "values=frozen", *more])
    train = pq.read_table(run / "features" / "train.parquet")
    return np.array([not any(vector) for vector in train["learn_item"].to_pylist()])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seen") / "run"
    demo(folder)
    return folder


def test_the_default_says_that_the_labels_were_seen_and_how_much_it_shows(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = facts(run / "export" / "user", "export")[LABELS_SEEN]
    assert seen == facts(run / "align", "align")[LABELS_SEEN]
    assert seen["is_of_training"]
    assert seen["until"] is None
    figures = json.loads((run / "align" / "metrics.json").read_text())
    assert seen["cosine_uauc"] == {window: figures[window]["uauc"] for window in ("train", "validation")}
    for name in ("report.md", "report.html", "report.json"):
        text = (run / "evaluate" / name).read_text()
        assert LEAK in text.replace("&#39;", "'")
        assert f"{figures['train']['uauc']:.4f}, on validation {figures['validation']['uauc']:.4f}" in text
    demo(run)
    assert f"{figures['train']['uauc']:.4f}" in capsys.readouterr().out


def test_towers_that_learn_until_a_time_hand_it_to_the_ranker(run: Path) -> None:
    demo(run, "align.until=0.5")
    until = facts(run / "align", "align")["until"]
    times = pq.read_table(run / "prepare" / "interactions" / "train.parquet")["timestamp"].to_numpy()
    assert times.min() < until < times.max()
    assert facts(run / "export" / "user", "export")[LABELS_SEEN]["until"] == until
    assert LEAK not in (run / "evaluate" / "report.md").read_text()
    assert np.array_equal(vectorless(run), times < until)
    assert facts(run / "train" / "learn", "train")["num_rows"] == len(times)
    demo(run, "align.until=0.5", "ranker.adaptor.rows_before_until=left_out")
    assert facts(run / "train" / "learn", "train")["num_rows"] == (times >= until).sum()
    assert facts(run / "train" / "baseline", "train")["num_rows"] == len(times)


def test_halves_leave_nothing_to_be_said(run: Path) -> None:
    demo(run, "align.halves=true")
    assert not facts(run / "export" / "user", "export")[LABELS_SEEN]["is_of_training"]
    assert LEAK not in (run / "evaluate" / "report.md").read_text()
    assert not vectorless(run).any()


def test_what_earlier_towers_of_the_same_log_saw_is_not_forgotten() -> None:
    def seen(options: AlignOptions, start: dict[str, Any] | None = None, until: int | None = None) -> tuple[bool, Any]:
        made = {"cosine_uauc": {}} | ({} if until is None else {"until": until})
        before = None if start is None else Manifest("align", {}, {}, {LABELS_SEEN: start})
        known = with_labels_seen(made, options, before)[LABELS_SEEN]
        return known["is_of_training"], known["until"]

    leaky = {"is_of_training": True, "until": None, "cosine_uauc": {}}
    clean = {"is_of_training": False, "until": 500, "cosine_uauc": {}}
    zero_shot = AlignOptions(init_from="x", epochs=0)
    assert seen(AlignOptions()) == (True, None)
    assert seen(AlignOptions(objective="none")) == (False, None)
    assert seen(AlignOptions(halves=True)) == (False, None)
    assert seen(AlignOptions(until="0.5"), until=700) == (False, 700)
    assert seen(zero_shot) == (False, None)  # from another log
    assert seen(zero_shot, leaky) == (True, None)
    assert seen(zero_shot, clean) == (False, 500)
    assert seen(AlignOptions(init_from="x", until="0.3"), clean, until=300) == (False, 500)
    assert seen(AlignOptions(init_from="x", until="0.3"), leaky, until=300) == (True, 300)
    assert seen(AlignOptions(init_from="x"), clean) == (True, 500)


def test_stores_of_unknown_origin_are_not_accused() -> None:
    assert leak_notes(None) == []
    assert "UAUC" not in leak_notes({"is_of_training": True, "until": None, "cosine_uauc": {"train": None}})[0]


def test_what_cannot_be_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(run, "align.halves=true")
    own = [word for word in SMALL if not word.startswith("demo.")]
    for words, message in (
        (["align.until=2001-01-01"], "align.until is '2001-01-01', 2001-01-01T00:00:00Z, but the positive"),
        (["align.until=2"], "expected a share between 0 and 1"),
        ([f"align.init_from={run}"], "holds two towers (align.halves)"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(["align", f"run_dir={run}", *own, *words])
        assert raised.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
