"""weights: tensors come back bit by bit; what is damaged, or would run something, is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from learn_rank.errors import InputError
from learn_rank.weights import read_weights
from tests.hostile import Runs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save({"weights": {"w": torch.arange(1000.0)}, "width": 3}, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def test_what_was_saved_is_read(path: Path) -> None:
    read_back = read_weights(path, remedy="")
    assert read_back["width"] == 3
    assert torch.equal(read_back["weights"]["w"], torch.arange(1000.0))


def test_no_flipped_bit_gives_other_weights(path: Path) -> None:
    whole = path.read_bytes()
    for at in range(0, len(whole), 61):
        content = bytearray(whole)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        try:
            read_back = read_weights(path, remedy="")
        except InputError:
            continue
        assert torch.equal(read_back["weights"]["w"], torch.arange(1000.0))
        assert read_back["width"] == 3


@pytest.mark.parametrize("size", [0, 1, 100, 3000, -1])
def test_a_file_that_was_cut_is_damaged(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"w\.pt: damaged.*; make it again$"):
        read_weights(path, remedy="make it again")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_would_run_something_is_refused_before_it_does(tmp_path: Path, is_zip: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "w.pt"
    content = {"weights": {}, "more": Runs(marker)}
    if is_zip:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"w\.pt: damaged, or (holds more than|no file of weights).*; make it again"):
        read_weights(path, remedy="make it again")
    assert not marker.exists()


def test_anything_but_a_dict_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "w.pt")
    with pytest.raises(InputError, match="a Tensor, expected a dict"):
        read_weights(tmp_path / "w.pt", remedy="")
