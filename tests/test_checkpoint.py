"""checkpoint: keeps the newest and the best, survives kills, full disks and damage, refuses what does not fit."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from learn_rank import checkpoint
from learn_rank.distributed import process_group
from learn_rank.errors import InputError
from learn_rank.fingerprints import file_checksum, fingerprint
from tests.hostile import Runs
from tests.ranks import run_alone


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    with process_group():
        yield


@pytest.fixture
def small_disk(mount_disk: Callable[[int], Path]) -> Path:
    return mount_disk(4)


def save(directory: Path, value: float, *, is_best: bool = False, keep: int = 2) -> None:
    checkpoint.save(directory, {"w": torch.full((3,), value)}, {"value": value}, is_best=is_best, keep=keep)


def value(directory: Path, pointer: str = checkpoint.LATEST) -> float:
    state = {"w": torch.zeros(3)}
    checkpoint.load(directory, state, pointer)
    assert state["w"].unique().numel() == 1
    assert checkpoint.read_meta(directory, pointer) == {"value": state["w"][0].item()}
    return state["w"][0].item()


def folders(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


@pytest.mark.parametrize(("keep", "kept"), [(1, [2, 5]), (2, [2, 4, 5]), (3, [2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_newest_and_the_best_are_kept_and_older_ones_removed(tmp_path: Path, keep: int, kept: list[int]) -> None:
    for number in (1, 2, 3, 4, 5):
        save(tmp_path, number, is_best=number <= 2, keep=keep)
    assert value(tmp_path) == 5
    assert value(tmp_path, checkpoint.BEST) == 2
    assert folders(tmp_path) == [f"checkpoint-{number}" for number in kept]
    pointers = json.loads((tmp_path / "pointers.json").read_text())
    assert (pointers["latest"], pointers["best"]) == ("checkpoint-5", "checkpoint-2")
    assert {pointers["best"], *pointers["kept"]} == set(folders(tmp_path))


def test_a_folder_without_checkpoint_has_no_meta(tmp_path: Path) -> None:
    assert checkpoint.read_meta(tmp_path) is None
    save(tmp_path, 1)
    assert checkpoint.read_meta(tmp_path, checkpoint.BEST) is None


def test_fewer_tensors_than_were_saved_may_be_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"model": {"a": torch.ones(2)}, "optimizer": torch.ones(5)}, {}, is_best=False)
    state = {"model": {"a": torch.zeros(2)}}
    checkpoint.load(tmp_path, state)
    assert torch.equal(state["model"]["a"], torch.ones(2))


def test_a_save_killed_halfway_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "__0_0.distcp").write_bytes(b"half")
    assert value(tmp_path) == 1
    save(tmp_path, 2)
    assert value(tmp_path) == 2


def test_a_save_killed_before_it_was_pointed_to_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "checkpoint-2")
    assert value(tmp_path) == 1
    save(tmp_path, 2)
    assert value(tmp_path) == 2


_SAVES_UNTIL_IT_DIES = """
import os, sys, torch
from pathlib import Path
from learn_rank import checkpoint
from learn_rank.distributed import process_group
from tests.kills import die_when, renames_to

child = os.fork()
if child == 0:
    try:
        die_when(renames_to("pointers.json"), times=3, work_seconds=float(sys.argv[2]))  # in the middle of a later save
        with process_group():
            for number in range(1, 1_000_000):
                state = {"w": torch.full((200_000,), float(number))}
                checkpoint.save(Path(sys.argv[1]), state, {"value": number}, is_best=number % 3 == 0)
    finally:
        os._exit(1)
assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
"""


def test_a_checkpoint_is_whole_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    for attempt in range(3):
        run_alone(_SAVES_UNTIL_IT_DIES, tmp_path, 0.02 + 0.0037 * attempt)
        state = {"w": torch.zeros(200_000)}
        for pointer in (checkpoint.LATEST, checkpoint.BEST):
            meta = checkpoint.read_meta(tmp_path, pointer)
            if meta is not None:
                checkpoint.load(tmp_path, state, pointer)
                assert (state["w"] == meta["value"]).all()
        assert checkpoint.read_meta(tmp_path) is not None


def test_loading_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished checkpoint"):
        checkpoint.load(tmp_path, {})


@pytest.mark.parametrize("state", [{"w": torch.zeros(4)}, {"other": torch.zeros(3)}])
def test_a_tensor_that_was_not_saved_so_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save(tmp_path, 1)
    with pytest.raises(InputError, match="checkpoint-1: does not fit this model"):
        checkpoint.load(tmp_path, state)


def truncate(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])


def flip(name: str) -> Callable[[Path], None]:
    def flip_a_bit(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return flip_a_bit


DAMAGE: dict[str, Callable[[Path], Any]] = {
    r"__0_0\.distcp is not what was saved": truncate,
    r"\.metadata is not what was saved": flip(".metadata"),
    r"meta\.json": flip("meta.json"),
    r"__0_0\.distcp is missing": lambda folder: (folder / "__0_0.distcp").unlink(),
    r"\.metadata is missing": lambda folder: (folder / ".metadata").unlink(),
    r"meta\.json: \[Errno 2\]": lambda folder: (folder / "meta.json").unlink(),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("pointer", [checkpoint.LATEST, checkpoint.BEST])
def test_after_damage_it_is_enough_to_delete_the_folder_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, pointer: str
) -> None:
    for number in (1, 2, 3):
        save(tmp_path, number, is_best=number == 3)
    DAMAGE[what](tmp_path / "checkpoint-3")
    expected = rf"checkpoint-3: damaged \(.*{what}.*\); delete this folder, and checkpoint-2 takes its place"
    with pytest.raises(InputError, match=expected):
        value(tmp_path, pointer)
    shutil.rmtree(tmp_path / "checkpoint-3")
    assert value(tmp_path, pointer) == 2
    assert f"the {pointer} checkpoint checkpoint-3 is gone; checkpoint-2 takes its place" in capsys.readouterr().err
    save(tmp_path, 4)
    assert value(tmp_path) == 4
    assert value(tmp_path, checkpoint.BEST) == 2


def test_damage_to_the_only_checkpoint_says_that_there_is_no_other(tmp_path: Path) -> None:
    save(tmp_path, 1)
    truncate(tmp_path / "checkpoint-1")
    with pytest.raises(InputError, match=f"there is no other checkpoint: delete {tmp_path} and train again"):
        value(tmp_path)


def test_damaged_pointers_can_be_deleted_too(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path, number, is_best=number == 1)
    (tmp_path / "pointers.json").write_text('{"latest": "check')
    with pytest.raises(InputError, match=r"pointers\.json: damaged .*; delete it, and the newest checkpoint is taken"):
        value(tmp_path)
    (tmp_path / "pointers.json").unlink()
    assert value(tmp_path) == 2
    assert value(tmp_path, checkpoint.BEST) == 2


def test_pointers_to_another_checkpoint_than_was_written_are_damaged(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path, number, is_best=number == 1)
    pointers = tmp_path / "pointers.json"
    pointers.write_text(pointers.read_text().replace('"best": "checkpoint-1"', '"best": "checkpoint-2"'))
    with pytest.raises(InputError, match=r"pointers\.json: damaged"):
        value(tmp_path, checkpoint.BEST)


def rewrite_metadata(folder: Path, content: object, *, has_checksum: bool) -> None:
    """Puts another pickle into a checkpoint; has_checksum: its meta.json says that it was saved so."""
    (folder / ".metadata").write_bytes(pickle.dumps(content))
    if has_checksum:
        record = json.loads((folder / "meta.json").read_text())
        del record["fingerprint"]
        record["files"][".metadata"] = file_checksum(folder / ".metadata")
        (folder / "meta.json").write_text(json.dumps({**record, "fingerprint": fingerprint(**record)}))


@pytest.mark.parametrize("has_checksum", [False, True])
@pytest.mark.parametrize("read", [checkpoint.load, checkpoint.saved_sizes])
def test_metadata_that_would_run_something_is_refused_before_it_does(
    tmp_path: Path, has_checksum: bool, read: Callable[..., Any]
) -> None:
    marker = tmp_path / "ran"
    run = tmp_path / "run"
    save(run, 1)
    rewrite_metadata(run / "checkpoint-1", Runs(marker), has_checksum=has_checksum)
    why = r"\.metadata: UnpicklingError: asks for pathlib\.Path" if has_checksum else "is not what was saved"
    with pytest.raises(InputError, match=rf"checkpoint-1: damaged \(.*{why}"):
        read(run, {"w": torch.zeros(3)} if read is checkpoint.load else "w")
    assert not marker.exists()


def test_values_that_torch_would_unpickle_and_files_of_elsewhere_are_refused(tmp_path: Path) -> None:
    marker, run = tmp_path / "ran", tmp_path / "run"
    save(run, 1)
    folder = run / "checkpoint-1"
    honest = pickle.loads((folder / ".metadata").read_bytes())
    (tmp_path / "evil").write_bytes(pickle.dumps(Runs(marker)))
    (place,) = honest.storage_data.values()
    place.relative_path = "../../evil"
    rewrite_metadata(folder, honest, has_checksum=True)
    with pytest.raises(InputError, match=r"names '\.\./\.\./evil', which is no file of this checkpoint"):
        value(run)
    place.relative_path = "__0_0.distcp"
    honest.state_dict_metadata["w"] = BytesStorageMetadata()
    rewrite_metadata(folder, honest, has_checksum=True)
    with pytest.raises(InputError, match=r"asks for .*BytesStorageMetadata"):
        value(run)
    honest.state_dict_metadata["w"] = "anything"
    rewrite_metadata(folder, honest, has_checksum=True)
    with pytest.raises(InputError, match="'w' is no tensor"):
        value(run)
    assert not marker.exists()


def test_a_folder_that_the_user_renamed_is_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "checkpoint-1").rename(tmp_path / "checkpoint-1.bad")
    for number in (2, 3, 4):
        save(tmp_path, number)
    assert (tmp_path / "checkpoint-1.bad" / "meta.json").is_file()
    assert value(tmp_path) == 4


MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("num_floats", "meta"), [(MEBIBYTE, {}), (3, {"value": "x" * 8 * MEBIBYTE})], ids=["tensors", "meta"]
)
def test_on_a_full_disk_nothing_is_left_of_the_save_and_the_last_one_is_intact(
    small_disk: Path, num_floats: int, meta: dict[str, str]
) -> None:
    run = small_disk / "run"
    with pytest.raises(checkpoint.DiskFullError, match=f"{run}: the disk is full .* there is no earlier one; free"):
        checkpoint.save(run, {"w": torch.ones(num_floats)}, meta, is_best=True)
    save(run, 1)
    free = shutil.disk_usage(run).free
    with pytest.raises(checkpoint.DiskFullError, match=r"disk is full .* not saved, checkpoint-1 is intact; free"):
        checkpoint.save(run, {"w": torch.ones(num_floats)}, meta, is_best=True)
    assert folders(run) == ["checkpoint-1"]
    assert shutil.disk_usage(run).free == free
    assert value(run) == 1
    save(run, 2)
    assert value(run) == 2


def test_a_save_that_fails_on_a_roomy_disk_does_not_speak_of_the_disk(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(CheckpointException):
        checkpoint.save(tmp_path, {"w": torch.ones(3), "plain": lambda: None}, {}, is_best=False)
    assert folders(tmp_path) == ["checkpoint-1"]
    assert value(tmp_path) == 1
