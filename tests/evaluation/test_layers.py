"""Imports of the evaluation point down: options, statistics < input < engine < calibration < report < experiment."""

from __future__ import annotations

import ast
from pathlib import Path

import learn_rank.evaluation

PACKAGE = Path(learn_rank.evaluation.__file__).parent
LAYERS = (
    ("options", "statistics"),
    ("input",),
    ("engine", "slice_sums"),
    ("calibration",),
    ("report",),
    ("experiment",),
    ("evaluate", "seeds"),
    ("spark", "__init__"),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def _imported(path: Path) -> set[str]:
    """Files and rooms of the evaluation that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("learn_rank.evaluation"):
            names.add(node.module.removeprefix("learn_rank.evaluation").lstrip("."))
    return names


def test_no_room_imports_one_above_it() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 40
    for path in files:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in _imported(path):
            room = name.split(".")[0]
            assert room, f"{path} imports the package as a whole, which imports everything"
            assert LAYER[room] <= LAYER[own], f"{path} imports {name}"


def test_no_two_files_of_a_room_import_each_other() -> None:
    """Directly, or by way of others."""
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    left = {name: _imported(path) & set(files) for name, path in files.items()}
    while free := [name for name, imported in left.items() if not imported & set(left)]:
        for name in free:
            del left[name]
    assert not left
