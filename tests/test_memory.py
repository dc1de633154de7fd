from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from learn_rank import memory
from learn_rank.errors import InputError
from learn_rank.memory import available_bytes, parse_bytes


def test_available_memory_is_what_the_host_says_unless_a_container_has_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    unlimited = available_bytes()
    assert 1 << 20 < unlimited < 1 << 50
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 150000\nactive_file 100000\n")
    assert available_bytes() == 550_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() > 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1MiB", 2**20),
        ("2GiB", 2**31),
        ("1TiB", 2**40),
        ("3MB", 3 * 10**6),
        ("1.5GB", 1_500_000_000),
        ("1TB", 10**12),
        (" 2 gib ", 2**31),
        ("512mib", 2**29),
        ("1e3MB", 10**9),
    ],
)
def test_sizes_are_powers_of_1024_with_an_i_and_of_1000_without(text, size):
    assert parse_bytes(text, name="limit") == size


@pytest.mark.parametrize(
    "text", ["", "2", "GiB", "2KB", "-1GiB", "0MB", "nanGB", "infGB", "1e300TB", "two GiB", "1,5GB", 5]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match=f"limit is '{text}', expected a size such as 512MiB or 2GiB"):
        parse_bytes(text, name="limit")


FAULTS = """
import resource
import numpy as np
from learn_rank.memory import keep_freed_memory

print(keep_freed_memory())
np.ones(50 << 20, np.int8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(50 << 20, np.int8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
@pytest.mark.parametrize(("environment", "is_kept"), [({}, "True"), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, "False")])
def test_freed_blocks_are_taken_again_unless_the_environment_says_otherwise(environment, is_kept):
    unset = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    told = subprocess.run([sys.executable, "-c", FAULTS], env=unset | environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    kept, faults = told.stdout.split()
    assert kept == is_kept
    # of 50 MiB in pages of 4 KiB or more; left alone, each of the five blocks is new memory
    assert (int(faults) < 50) == (is_kept == "True")
