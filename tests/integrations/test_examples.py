"""The examples run as they stand, and show LEARN ahead of the ranker alone and of shuffled vectors."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
HOSTS = [path.stem.removeprefix("learn_in_") for path in sorted(EXAMPLES.glob("learn_in_*.py"))]


def test_there_are_examples() -> None:
    assert HOSTS == ["deepctr_torch", "fuxictr", "torch", "torchrec"]


@pytest.mark.parametrize("name", HOSTS)
def test_learn_is_ahead_of_the_ranker_alone_and_of_shuffled_vectors(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    runpy.run_path(str(EXAMPLES / f"learn_in_{name}.py"), run_name="__main__")
    matches = re.findall(r"AUC (0\.\d+), of new items (0\.\d+)", capsys.readouterr().out)
    alone, learn, shuffled = ([float(area) for area in line] for line in matches)
    for part in range(2):  # of all rows, and of new items
        assert learn[part] > max(alone[part], shuffled[part]) + 0.04
