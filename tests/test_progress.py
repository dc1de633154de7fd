from __future__ import annotations

import gc

import pytest
from tqdm import tqdm

from learn_rank.progress import note, progress_bar


def test_an_error_leaves_no_bar_open(capsys: pytest.CaptureFixture[str]) -> None:
    before = len(tqdm._instances)
    with pytest.raises(ValueError, match="inside") as kept, progress_bar(total=3, description="work", unit="step"):
        raise ValueError("inside")
    gc.collect()
    assert len(tqdm._instances) == before, kept  # the error, which holds the block's frame, is still there
    note("a line")
    assert capsys.readouterr().err.endswith("learn-rank: a line\n")
