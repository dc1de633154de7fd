"""Two ranks write the stores that one writes, to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from learn_rank.cli.main import main
from tests.ranks import run_ranks

pytest.importorskip("torch")

_RANK = """
import sys
import torch
from learn_rank.alignment import export
from learn_rank.cli import alignment
from learn_rank.cli.load import load

torch.set_num_threads(1)
export._BLOCK_BYTES = 64 * 4 * 100  # blocks of a hundred rows
alignment.export(load("run", [f"run_dir={sys.argv[1]}"]))
"""
STORES = ("item", "user")


def files(folder: Path) -> dict[str, bytes]:
    """What the stores hold, without their manifests, which know when they were made."""
    paths = [path for store in STORES for path in sorted((folder / "export" / store).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != "manifest.json"}


def test_two_ranks_export_what_one_does(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    sizes = ["demo.num_users=120", "demo.num_items=100", "demo.num_interactions=6000"]
    towers = ["align.epochs=1", "align.width=16", "align.num_layers=1", "align.num_heads=2"]
    main(["demo", f"run_dir={alone}", "arms=[baseline]", "ranker.training.epochs=1", *sizes])
    main(["align", f"run_dir={alone}", *towers])
    shutil.copytree(alone, shared)
    script = tmp_path / "rank.py"
    script.write_text(_RANK)
    for folder, num_ranks in ((alone, 1), (shared, 2)):
        run_ranks(script, folder, num_ranks=num_ranks)
    assert files(shared) == files(alone)
    assert any("item" in name for name in files(alone))
    assert not list(shared.rglob("parts"))
