from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank import artifact
from learn_rank.artifact import Manifest, check_file, is_current, read_manifest
from learn_rank.errors import InputError
from learn_rank.publish import publish

ONE, OTHER = Manifest("prepare", {"log": "a"}, {"x": 1}), Manifest("prepare", {"log": "a"}, {"x": 2})


def published(folder: Path, manifest: Manifest = ONE, **contents: str) -> Path:
    with publish(folder, manifest) as (work, facts):
        for name, text in contents.items():
            (work / name).write_text(text)
        facts["rows"] = 3
    return folder


def test_a_published_folder_carries_what_made_it(tmp_path: Path) -> None:
    folder = published(tmp_path / "p", data="whole")
    assert (folder / "data").read_text() == "whole"
    read_back = read_manifest(folder, stage="prepare")
    assert (read_back.fingerprint, read_back.facts, read_back.inputs) == (ONE.fingerprint, {"rows": 3}, {"log": "a"})
    assert "pyarrow" in read_back.versions
    assert is_current(folder, ONE)
    assert not is_current(folder, OTHER)


def test_the_fingerprint_is_that_of_the_stages_format_and_not_of_the_packages_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = published(tmp_path / "p")
    monkeypatch.setattr(artifact, "__version__", "99.0")
    assert is_current(folder, ONE)
    monkeypatch.setitem(artifact.STAGE_FORMATS, "prepare", 2)
    assert not is_current(folder, ONE)
    with pytest.raises(InputError, match=r"format 1 of 'prepare', expected 2.*learn-rank prepare"):
        read_manifest(folder, stage="prepare")


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:3], lambda b: b + b"x", lambda b: b"W" + b[1:], lambda b: b""],
    ids=["cut", "longer", "flipped", "empty"],
)
def test_a_damaged_file_is_named_and_the_folder_is_no_longer_current(tmp_path: Path, damage: object) -> None:
    folder = published(tmp_path / "p", data="whole", other="other")
    path = folder / "data"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(InputError, match=rf"{path}: damaged"):
        read_manifest(folder, stage="prepare")
    assert not is_current(folder, ONE)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = published(tmp_path / "p", data="whole")
    (folder / "data").unlink()
    with pytest.raises(InputError, match=rf"{folder / 'data'}: is missing"):
        read_manifest(folder, stage="prepare")


def test_a_trained_folder_lists_neither_how_training_went_nor_checkpoints_which_sum_themselves(tmp_path: Path) -> None:
    trained = Manifest("train", {}, {})
    with publish(tmp_path / "p", trained) as (work, _):
        for name in ("tensorboard/events", "checkpoint-1/meta.json", "pointers.json"):
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text("x")
    assert read_manifest(tmp_path / "p", stage="train").files.keys() == {"pointers.json"}
    (tmp_path / "p" / "tensorboard" / "events").unlink()
    assert is_current(tmp_path / "p", trained)
    published(tmp_path / "p", replace(trained, options={"x": 1}))
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"manifest.json"}


def test_no_flip_of_the_manifest_is_silent_or_a_traceback(tmp_path: Path) -> None:
    folder = published(tmp_path / "p", data="whole")
    path = folder / "manifest.json"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for at in generator.integers(0, len(whole), 200):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        with suppress(InputError):  # or what was flipped is white space
            read_back = read_manifest(folder, stage="prepare")
            assert (read_back.fingerprint, read_back.facts, read_back.inputs) == (
                ONE.fingerprint,
                {"rows": 3},
                {"log": "a"},
            )
    path.write_bytes(whole)
    assert read_manifest(folder, stage="prepare").facts == {"rows": 3}


@pytest.mark.parametrize("content", ["", "null", "[]", '{"stage": 1}', "\xff", '{"stage": "prepare"}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    folder = published(tmp_path / "p")
    (folder / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match="damaged"):
        read_manifest(folder, stage="prepare")


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    path = published(tmp_path / "p") / "manifest.json"
    for before, after in (('"x": 1', '"x": 5'), ('"rows": 3', '"rows": 4')):
        whole = path.read_text()
        path.write_text(whole.replace(before, after))
        with pytest.raises(InputError, match="was edited"):
            read_manifest(tmp_path / "p", stage="prepare")
        path.write_text(whole)


def test_a_manifest_of_an_earlier_version_is_made_again(tmp_path: Path) -> None:
    path = published(tmp_path / "p") / "manifest.json"
    record = json.loads(path.read_text())
    for name in ("format", "files", "checksum"):
        del record[name]
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="another version of learn-rank"):
        read_manifest(tmp_path / "p", stage="prepare")
    published(tmp_path / "p", data="new")
    assert read_manifest(tmp_path / "p", stage="prepare").files.keys() == {"data"}


def test_of_large_files_the_footer_is_compared_and_the_rest_by_whoever_reads_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "_WHOLE_BYTES", 100)
    with publish(tmp_path / "p", ONE) as (work, _):
        pq.write_table(pa.table({"x": np.arange(1000)}), work / "t.parquet")
        (work / "weights").write_bytes(bytes(1000))
    table, weights = tmp_path / "p" / "t.parquet", tmp_path / "p" / "weights"
    whole = table.read_bytes()
    table.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    with pytest.raises(InputError, match="footer"):
        read_manifest(tmp_path / "p", stage="prepare")
    table.write_bytes(whole)
    weights.write_bytes(bytes(999) + b"x")
    read_manifest(tmp_path / "p", stage="prepare")
    with pytest.raises(InputError, match=rf"{weights}: damaged"):
        check_file(tmp_path / "p", "weights")
