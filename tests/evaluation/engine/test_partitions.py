from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation.engine.packed_rows import pack_words
from learn_rank.evaluation.engine.partitions import Partitions, check_disk
from learn_rank.hashing import hash_int64


def _filled(spill_dir, num_batches=7):
    held = Partitions(1 << 3, spill_dir=spill_dir)
    batches = []
    for seed in range(num_batches):
        rng, num_rows = np.random.default_rng(seed), 0 if seed == 3 else 400
        hashes = hash_int64(rng.integers(-(2**63), 2**63 - 1, num_rows))
        flags, scores = rng.integers(0, 8, num_rows).astype(np.uint32), rng.normal(size=num_rows).astype(np.float32)
        batches.append(pack_words(hashes, flags, [scores], bits=3))
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda batch: held.append(*batch), batches))
    return held, batches


@pytest.mark.parametrize("is_spilled", [False, True])
def test_memory_and_disk_give_back_every_row_of_a_partition(is_spilled, tmp_path):
    held, batches = _filled(tmp_path if is_spilled else None)
    num_rows = 0
    for p in range(8):
        expected = np.concatenate([rows[starts[p] : starts[p + 1]] for rows, starts in batches])
        expected = sorted(map(tuple, expected.tolist()))
        assert sorted(map(tuple, held.load(p, width=3).tolist())) == expected
        pieces = list(held.load_in_pieces(p, width=3, most=37))
        assert max(map(len, pieces)) <= 37
        assert sorted(map(tuple, np.concatenate(pieces).tolist())) == expected
        assert held.num_rows(p) == len(expected)
        num_rows += len(expected)
    assert num_rows == 6 * 400
    assert held.spill_bytes == (num_rows * 12 if is_spilled else 0)
    held.close()


def test_sealed_runs_come_in_their_order_whichever_was_there_first(tmp_path):
    for spill_dir in (None, tmp_path):
        held = Partitions(1, spill_dir=spill_dir)
        for order in (2, 0, 1):
            held.append(np.full((2, 3), order, np.uint32), np.array([0, 2]), order=order)
        held.seal()
        assert held.load(0, width=3)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        held.close()


def test_one_batch_alone_and_none_at_all_are_loaded_too():
    held, batches = _filled(None, num_batches=1)
    rows, starts = batches[0]
    assert held.load(5, width=3).tolist() == rows[starts[5] : starts[6]].tolist()
    assert Partitions(2).load(1, width=3).shape == (0, 3)


def _open_files(folder):
    """What this process has open below a folder; '(deleted)' marks files without a name."""
    names = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own
            names.append(str(link.readlink()))
    return [name for name in names if name.startswith(str(folder))]


def test_a_spill_file_has_no_name_and_is_gone_when_it_is_closed(tmp_path):
    held = Partitions(1, spill_dir=tmp_path)
    held.append(np.zeros((1 << 10, 4), np.uint32), np.array([0, 1 << 10]))
    assert list(tmp_path.iterdir()) == []
    (name,) = _open_files(tmp_path)
    assert name.endswith("(deleted)")
    held.close()
    assert _open_files(tmp_path) == []


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9))
    check_disk(tmp_path, 900_000_000, what="sorting 3 rows")
    with pytest.raises(InputError, match=r"sorting 3 rows needs 2.2 GB of disk.* 1.0 GB are free; .* memory_limit"):
        check_disk(tmp_path, 2 * 10**9, what="sorting 3 rows")
    with pytest.raises(InputError, match="with a tenth to spare"):
        check_disk(tmp_path, 950_000_000, what="sorting 3 rows")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"spill_dir=.*absent: no such folder"):
        check_disk(tmp_path / "absent", 1, what="sorting")
    with pytest.raises(InputError, match=r"spill_dir=.*absent: no file can be made there"):
        Partitions(1, spill_dir=tmp_path / "absent")


def test_a_disk_that_fills_up_while_writing_is_reported_as_such(tmp_path):
    code = f"""
import pathlib, resource
import numpy as np
from learn_rank.errors import InputError
from learn_rank.evaluation.engine.partitions import Partitions
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
held = Partitions(1, spill_dir=pathlib.Path({str(tmp_path)!r}))
try:
    for _ in range(2):
        held.append(np.zeros((1 << 16, 3), np.uint32), np.array([0, 1 << 16]))
except InputError as error:
    print(error)
"""
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "the spill file stopped at 0.0 GB (File too large); free some disk" in finished.stdout
