"""Memory: sizes as users write them, what is available, and whether freed memory is kept."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from learn_rank.errors import InputError

LIMIT_HELP = (
    "Most memory that the command may add to the process, such as 512MiB or 8GB. The rest goes through the disk."
)
_UNITS = {"MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_CGROUP = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BLOCK = 256 << 20


def parse_bytes(text: str, *, name: str) -> int:
    """'2GiB' -> 2147483648; InputError for anything but a number with MB, MiB, GB, GiB, TB or TiB.

    Every memory_limit is read by it; LIMIT_HELP explains what they mean.

    >>> parse_bytes("1.5 GB", name="limit")
    1500000000
    """
    compact = str(text).replace(" ", "").upper()
    for unit, scale in _UNITS.items():
        if compact.endswith(unit):
            try:
                size = float(compact.removesuffix(unit))
            except ValueError:
                break
            if 0 < size * scale < 1 << 62:
                return int(size * scale)
    raise InputError(f"{name} is '{text}', expected a size such as 512MiB or 2GiB")


def format_bytes(size: float) -> str:
    """A size in readable form.

    >>> format_bytes(3 << 29), format_bytes(700)
    ('1.50 GiB', '700 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def available_bytes() -> int:
    """Memory that this process can still use: the host's, or the control group's if that is less (containers).

    Page cache that can be reclaimed counts as available.
    """
    return min(_host_bytes(Path("/proc/meminfo").read_text(encoding="utf-8")), _cgroup_bytes(_CGROUP))


def keep_freed_memory() -> bool:
    """Makes glibc keep freed blocks of up to 256 MiB for later allocations; returns whether it does.

    A training step frees memory that the next one needs again, and pages that come back from the operating system must
    be cleared at first touch. Nothing is changed with other C libraries, or if the environment sets
    MALLOC_TRIM_THRESHOLD_ or MALLOC_MMAP_THRESHOLD_.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK) and mallopt(_M_TRIM_THRESHOLD, -1))


def _host_bytes(meminfo: str) -> int:
    line = next(line for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def _cgroup_bytes(group: Path) -> int:
    """What cgroup v2 leaves to this process; a huge number if there is no limit."""
    limit = group / "memory.max"
    if not limit.is_file() or (text := limit.read_text(encoding="utf-8").strip()) == "max":
        return 1 << 62
    statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    cached = sum(int(statistics.get(name, "0")) for name in ("inactive_file", "active_file"))
    used = int((group / "memory.current").read_text(encoding="utf-8")) - cached
    return max(int(text) - used, 0)
