"""The examples for plain torch and TorchRec run, and show LEARN ahead."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["torch", "torchrec"])
def test_learn_is_ahead_of_the_ranker_alone_and_of_shuffled_vectors(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"learn_in_{name}.py"],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    alone, learn, shuffled = (
        [float(word.rstrip(",")) for word in line.split() if word[0] == "0"] for line in done.stdout.splitlines()
    )
    for part in range(2):  # of all rows, and of new items
        assert learn[part] > max(alone[part], shuffled[part]) + 0.04
