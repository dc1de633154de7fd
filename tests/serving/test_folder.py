"""The folder of export-model: what is in it, other programs than torch's, and what happens when a part is damaged."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learn_rank.cli.main import main
from learn_rank.errors import InputError
from learn_rank.ranker.outputs.dense_program import can_write_onnx
from learn_rank.serving import Scorer
from learn_rank.serving.folder import ServedModel

ITEMS = [f"item {number}" for number in range(35)]


def scores(folder: Path, **options: Any) -> np.ndarray:
    return np.concatenate(
        [Scorer(folder, **options).score(user, ITEMS, context={"tab": 1, "hour": 8}) for user in (1, 7, 39, 500)]
    )


def test_bfloat16_is_close(single: Any) -> None:
    exact, rounded = (scores(single.model("learn"), bf16=bf16) for bf16 in (False, True))
    assert 0 < np.abs(exact - rounded).max() < 0.01


@pytest.mark.skipif(not can_write_onnx(), reason="onnx and onnxscript are not installed")
def test_onnx_gives_the_same_scores_with_vectors_and_histories(din: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    main(["export-model", f"run_dir={din.directory}", f"out={tmp_path / 'model'}", "onnx=true"])
    exact, onnx = (Scorer(tmp_path / "model", backend=backend, threads=1) for backend in ("torch", "onnx"))
    for size, history in ((1, []), (2, ["item 3"]), (35, ITEMS[:9])):
        expected = exact.score(7, ITEMS[:size], history=history)
        np.testing.assert_allclose(onnx.score(7, ITEMS[:size], history=history), expected, atol=1e-6)


def test_linked_stores_are_the_files_of_the_run(
    single: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = single.directory / "linked"
    command = ["export-model", f"run_dir={single.directory}", f"out={out}", "onnx=false", "link_stores=true"]
    main(command)
    assert "model: " in capsys.readouterr().out
    for name in ("user", "item"):
        mine, its = (folder / name / "v1" / "rows.bin" for folder in (out / "stores", single.directory / "export"))
        assert mine.samefile(its)
        copied = single.model("learn") / "stores" / name / "v1" / "rows.bin"
        assert not copied.samefile(its)
        assert copied.read_bytes() == its.read_bytes()
    np.testing.assert_array_equal(scores(out), scores(single.model("learn")))
    main(command)
    assert "unchanged" in capsys.readouterr().out


def test_a_baseline_carries_no_vectors(single: Any) -> None:
    assert not (single.model("baseline") / "stores").exists()
    assert ServedModel.read(single.model("baseline")).inputs == ("dense", "sparse")


@pytest.mark.parametrize(
    "name",
    [
        "scorer.pt2",
        "model.json",
        "dense.json",
        "manifest.json",
        "tables/brand/v1/rows.bin",
        "items/v1/keys.u64",
        "users/v1/store.json",
        "stores/user/v1/as_of.i64",
        "stores/item/current",
    ],
)
@pytest.mark.parametrize("how", ["cut", "bit"])
def test_a_damaged_file_is_named(single: Any, tmp_path: Path, name: str, how: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(single.model("learn"), folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content if how == "bit" else content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"{re.escape(str(folder / name))}: (was edited or )?damaged") as error:
        Scorer(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "jax"}, "backend is 'jax', expected torch or onnx"),
        ({"backend": "onnx"}, "was exported without scorer.onnx; run `learn-rank export-model onnx=true`"),
        ({"backend": "onnx", "bf16": True}, "bf16 needs backend=torch"),
        ({"threads": 0}, "threads is 0, expected 1 or more"),
    ],
)
def test_what_cannot_be_opened_is_refused(single: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scorer(single.model("learn"), **options)


def test_another_folder_is_refused(single: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `learn-rank export-model` first"):
        Scorer(tmp_path)
    with pytest.raises(InputError, match="made by stage 'train', expected 'export-model'"):
        Scorer(single.directory / "train" / "learn")


def test_a_backbone_that_torch_cannot_follow_is_named(
    single: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "moody.py").write_text(_MOODY)
    monkeypatch.syspath_prepend(tmp_path)
    run = other_run(single, tmp_path, "prepare", "export")
    main(["train", f"run_dir={run}", "arms=[baseline]", "ranker.training.epochs=1", "ranker.backbone.name=moody:build"])
    refused("backbone moody:build cannot be exported (", run, capsys, "arm=baseline", "onnx=false")
    assert not (run / "model").exists()


def test_tables_that_were_prepared_without_entity_features_are_refused(
    single: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = other_run(single, tmp_path, "train", "export")
    shutil.copytree(single.directory / "prepare", run / "prepare")
    (run / "prepare" / "item_features.parquet").unlink()
    refused("item_features.parquet: is missing; remove ", run, capsys, "onnx=false")


def test_what_onnx_needs_is_said(
    single: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("learn_rank.ranker.outputs.export_model.can_write_onnx", lambda: False)
    refused("pip install 'learn-rank[onnx]', or set onnx=false", single.directory, capsys, "onnx=true")


_MOODY = """
from torch import nn

class Moody(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.head = nn.Linear(widths.total, 1)

    def forward(self, features):
        x = features.concatenated()
        return (self.head(x) if float(x.detach().sum()) > 0 else self.head(-x)).squeeze(1)

def build(widths, options):
    return Moody(widths)
"""


def other_run(run: Any, folder: Path, *same: str) -> Path:
    """A run directory with some of another's stages."""
    (folder / "run").mkdir()
    for stage in same:
        (folder / "run" / stage).symlink_to((run.directory / stage).resolve())
    return folder / "run"


def refused(message: str, run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["export-model", f"run_dir={run}", *options])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("learn-rank: error: ")
    assert message in said
