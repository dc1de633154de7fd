from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from learn_rank import publish as publishing
from learn_rank.artifact import Manifest, is_current, read_manifest
from learn_rank.errors import InputError
from learn_rank.publish import check_target, own_folder, publish

ONE, OTHER = Manifest("prepare", {"log": "a"}, {"x": 1}), Manifest("prepare", {"log": "a"}, {"x": 2})


def write(folder: Path, manifest: Manifest, reads: tuple[Path, ...] = (), **contents: str) -> None:
    with publish(folder, manifest, reads=reads) as (work, _):
        for name, text in contents.items():
            (work / name).write_text(text)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_failure_leaves_the_previous_folder_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "p", ONE, data="first")
    with pytest.raises(RuntimeError), publish(tmp_path / "p", OTHER) as (work, _):
        (work / "data").write_text("half")
        raise RuntimeError
    assert (tmp_path / "p" / "data").read_text() == "first"
    assert {path.name for path in tmp_path.iterdir()} == {"p"}


def test_what_is_refused_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), publish(tmp_path / "a" / "b" / "p", ONE):
        raise RuntimeError
    assert not names(tmp_path)


@pytest.mark.parametrize("stage", ["segment", "evaluate", "evaluate-state", "store", "export-model", "features"])
def test_a_folder_of_the_users_own_is_refused_and_stays_as_it_is(tmp_path: Path, stage: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"mine: holds thesis\.tex"):
        write(tmp_path / "mine", Manifest(stage, {}, {}))
    assert names(tmp_path) == {"mine", "mine/thesis.tex"}


def test_hidden_files_and_foreign_manifests_are_the_users_too(tmp_path: Path) -> None:
    for n, (name, text) in enumerate(((".env", "x"), ("manifest.json", '{"name": "my app"}'), ("manifest.json", "{"))):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(InputError, match="holds"):
            check_target(folder, "prepare")


def test_an_output_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "p", Manifest("segment", {}, {}))
    with pytest.raises(InputError, match=r"holds the output of `learn-rank segment`"):
        check_target(tmp_path / "p", "evaluate")
    write(tmp_path / "report", Manifest("evaluate", {}, {}))
    check_target(tmp_path / "report", "experiment")  # both are reports


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    write(tmp_path / "p", ONE, data="x")
    assert is_current(tmp_path / "p", ONE)
    assert {path.name for path in tmp_path.iterdir()} == {"p"}


def test_a_file_is_refused_as_the_target_and_above_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(InputError, match="file is a file"):
            write(target, ONE)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_is_never_its_input_nor_holds_it_nor_lies_in_it(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "log.parquet").write_text("mine")
    (tmp_path / "link").symlink_to(inputs)
    for target, read, how in (
        (inputs, inputs, "is the input"),
        (tmp_path, inputs, "holds the input"),
        (inputs, inputs / "log.parquet", "holds the input"),
        (inputs / "out", inputs, "lies in the input"),
        (tmp_path / "link" / "out", inputs, "lies in the input"),
        (inputs, tmp_path / "link", "is the input"),
    ):
        with pytest.raises(InputError, match=how):
            write(target, ONE, (read,))
    assert (inputs / "log.parquet").read_text() == "mine"
    write(tmp_path / "out", ONE, (inputs, inputs / "log.parquet"))


def test_an_output_is_refused_where_its_input_lies_even_if_it_is_ours(tmp_path: Path) -> None:
    write(tmp_path / "p", ONE, data="x")
    with pytest.raises(InputError, match="holds the input"):
        write(tmp_path / "p", OTHER, (tmp_path / "p" / "data",))


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for manifest in (ONE, OTHER):
        write(tmp_path / "out", manifest, data="x")
        assert (tmp_path / "out").is_symlink()
        assert is_current(tmp_path / "disk", manifest)
    (tmp_path / "to_nothing").symlink_to(tmp_path / "not" / "there")
    write(tmp_path / "to_nothing", ONE, data="x")
    assert is_current(tmp_path / "not" / "there", ONE)


def test_what_somebody_put_into_an_output_stays_when_it_is_made_again(tmp_path: Path) -> None:
    write(tmp_path / "p", ONE, data="first", gone="first")
    (tmp_path / "p" / "notes.md").write_text("mine")
    (tmp_path / "p" / "more" / "below").mkdir(parents=True)
    (tmp_path / "p" / "more" / "below" / "notes.md").write_text("mine")
    write(tmp_path / "p", OTHER, data="second", **{"notes.md": "ours"})
    assert (tmp_path / "p" / "data").read_text() == "second"
    assert not (tmp_path / "p" / "gone").exists()
    assert (tmp_path / "p" / "notes.md").read_text() == "ours"
    assert (tmp_path / "p" / "notes.md.1").read_text() == "mine"
    assert (tmp_path / "p" / "more" / "below" / "notes.md").read_text() == "mine"
    assert is_current(tmp_path / "p", OTHER)


def test_versions_of_a_store_are_ours_though_no_manifest_lists_them(tmp_path: Path) -> None:
    (folder := tmp_path / "p").mkdir()
    write(folder, Manifest("store", {}, {}), current="v1")
    (folder / "v2").mkdir()
    (folder / "v2" / "rows.bin").write_text("x")
    (folder / "current").write_text("v2")
    read_manifest(folder, stage="store")
    write(folder, Manifest("store", {}, {"x": 1}), current="v1")
    assert names(folder) == {"manifest.json", "current"}


@pytest.mark.parametrize("name", [".p.lock", ".p.partial", ".p.old"])
@pytest.mark.parametrize("is_link", [True, False])
def test_what_lies_under_our_names_and_is_not_ours_is_refused_and_left(
    tmp_path: Path, name: str, is_link: bool
) -> None:
    (victim := tmp_path / "victim").mkdir()
    (victim / "keep").write_text("mine")
    if is_link:
        (tmp_path / name).symlink_to(victim)
    else:
        shutil.copytree(victim, tmp_path / name)
    with pytest.raises(InputError, match=rf"\{name}.*move it away"):
        write(tmp_path / "p", ONE, data="x")
    assert (victim / "keep").read_text() == (tmp_path / name / "keep").read_text() == "mine"


def test_a_lock_is_not_opened_through_a_link_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".p.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="is a link"):
        write(tmp_path / "p", ONE)
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_resumable_stage_finds_its_work_again_only_under_the_same_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), publish(tmp_path / "p", ONE, is_resumable=True) as (work, _):
        (work / "part").write_text("1")
        raise RuntimeError
    with publish(tmp_path / "p", ONE, is_resumable=True) as (work, _):
        assert (work / "part").read_text() == "1"
        raise_after = work
    with publish(tmp_path / "p", OTHER, is_resumable=True) as (work, _):
        assert not (work / "part").exists()
    assert raise_after == work


def test_what_was_refused_is_kept_or_not_as_the_stage_says(tmp_path: Path) -> None:
    for keeps in (True, False):
        with (
            pytest.raises(InputError),
            publish(tmp_path / "p", ONE, is_resumable=True, keeps_refused=keeps) as (work, _),
        ):
            (work / "part").write_text("1")
            raise InputError("no")
        assert (tmp_path / ".p.partial").exists() is keeps


def test_a_folder_that_grows_in_place_is_found_again(tmp_path: Path) -> None:
    own_folder(tmp_path / "ablate", "ablate")
    (tmp_path / "ablate" / "report.json").write_text("{}")
    own_folder(tmp_path / "ablate", "ablate")
    assert (tmp_path / "ablate" / "report.json").exists()
    with pytest.raises(InputError, match="learn-rank ablate"):
        check_target(tmp_path / "ablate", "evaluate")


_KILLED = """
import os, signal, sys
from pathlib import Path
from learn_rank.artifact import Manifest
from learn_rank.publish import publish
with publish(Path(sys.argv[1]), Manifest("prepare", {}, {"x": 9})) as (work, facts):
    (work / "data").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_previous_folder_and_the_next_run_recovers(tmp_path: Path) -> None:
    write(tmp_path / "p", ONE, data="first")
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "p")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "p" / "data").read_text() == "first"
    with publish(tmp_path / "p", OTHER) as (work, _):
        assert not (work / "data").exists()
        (work / "data").write_text("second")
    assert (tmp_path / "p" / "data").read_text() == "second"


class Killed(BaseException):
    """Stands for a SIGKILL: nothing is tidied up after it."""


_STEPS = ((Path, "rename"), (Path, "replace"), (Path, "rmdir"), (Path, "unlink"), (Path, "mkdir"), (shutil, "rmtree"))


def is_killed_at(step: int, work: Callable[[], None]) -> bool:
    """Does the work up to the step-th change of a folder; False if it ended before."""
    done = 0

    def stepping(real: Callable[..., object]) -> Callable[..., object]:
        def change(*arguments: object, **named: object) -> object:
            nonlocal done
            done += 1
            if done > step:
                raise Killed
            return real(*arguments, **named)

        return change

    with pytest.MonkeyPatch.context() as patched:
        for owner, name in _STEPS:
            patched.setattr(owner, name, stepping(getattr(owner, name)))
        try:
            work()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("is_inside", [False, True])
def test_killed_at_any_step_of_the_exchange_nothing_is_lost_and_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_inside: bool
) -> None:
    monkeypatch.setattr(publishing, "_stays_where_it_is", lambda _: is_inside)
    wanted = {"data": "second", "more": "second", "kept": "ours", "kept.1": "mine", "notes/mine.md": "mine"}
    for step in itertools.count():
        folder = tmp_path / f"{step}" / "p"
        write(folder, ONE, data="first", gone="first")
        (folder / "notes").mkdir()
        for name in ("notes/mine.md", "kept"):
            (folder / name).write_text("mine")
        exchange = partial(write, folder, OTHER, data="second", more="second", kept="ours")
        if not is_killed_at(step, exchange):
            break
        exchange()
        assert is_current(folder, OTHER), step
        assert {name: (folder / name).read_text() for name in wanted} == wanted, step
        assert names(folder.parent) == {"p", "p/notes", "p/manifest.json", *(f"p/{name}" for name in wanted)}, step
    assert step > 5


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path / "p", ONE, data="first")
    (tmp_path / "p").rename(tmp_path / ".p.old")
    with pytest.raises(RuntimeError), publish(tmp_path / "p", OTHER):
        raise RuntimeError
    assert (tmp_path / "p" / "data").read_text() == "first"


def test_a_mount_points_contents_are_replaced(mount_disk: Callable[[int], Path]) -> None:
    disk = mount_disk(4)
    (disk / "lost+found").mkdir()
    for manifest, text in ((ONE, "first"), (OTHER, "second")):
        write(disk, manifest, data=text)
        assert (disk / "data").read_text() == text
        assert is_current(disk, manifest)
        assert names(disk) == {"data", "manifest.json", "lost+found"}
    (disk / "thesis.tex").write_text("mine")
    write(disk, ONE, data="third")
    assert (disk / "thesis.tex").read_text() == "mine"


def test_a_folder_bound_to_another_place_of_the_same_disk_is_a_mount_point_too(
    tmp_path: Path, mount_disk: Callable[[int], Path]
) -> None:
    (bound := tmp_path / "bound hére").mkdir()
    mounted = subprocess.run(["mount", "--bind", str(mount_disk(4)), str(bound)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("binding a folder is not permitted here")
    try:
        for manifest in (ONE, OTHER):
            write(bound, manifest, data="x")
            assert is_current(bound, manifest)
    finally:
        subprocess.run(["umount", str(bound)], check=True)


def test_the_working_folder_is_kept_and_its_contents_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "here").mkdir()
    monkeypatch.chdir(folder)
    for manifest in (ONE, OTHER):
        write(Path(), manifest, data="x")
        assert os.getcwd() == str(folder)
        assert is_current(folder, manifest)
    with pytest.raises(InputError, match="holds here"):
        write(Path(".."), ONE)
    with pytest.raises(InputError, match="holds"):
        write(Path("/"), ONE)


def test_a_full_disk_is_said_in_one_line_and_the_next_run_recovers(mount_disk: Callable[[int], Path]) -> None:
    disk = mount_disk(4)
    write(disk / "p", ONE, data="first")
    with pytest.raises(InputError, match="the disk is full"), publish(disk / "p", OTHER) as (work, _):
        (work / "data").write_bytes(b"x" * (8 << 20))
    assert (disk / "p" / "data").read_text() == "first"
    write(disk / "p", OTHER, data="second")
    assert (disk / "p" / "data").read_text() == "second"


def test_two_processes_cannot_write_one_folder(tmp_path: Path) -> None:
    with publish(tmp_path / "p", ONE), pytest.raises(InputError, match="another process"), publish(tmp_path / "p", ONE):
        pass


def test_a_work_folder_that_is_removed_meanwhile_is_never_published(tmp_path: Path) -> None:
    out = tmp_path / "run" / "out"
    opened = publish(out, Manifest("align", {}, {}), is_resumable=True)
    with pytest.raises(InputError, match=r"\.out\.partial was removed while it was filled"), opened as (work, _):
        shutil.rmtree(tmp_path / "run")
        work.mkdir(parents=True)
        (work / "second").write_text("2")
    assert not out.exists()


def test_an_error_after_the_work_folder_is_gone_stays_that_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publish(tmp_path / "out", Manifest("align", {}, {})) as (work, _):
        shutil.rmtree(work)
        raise ZeroDivisionError
