"""The direction of imports is part of the design: cli -> stages -> serving -> store, data, adaptor -> foundations.

Inside a stage the direction is that of its rooms, and no two files import each other, directly or through others.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import learn_rank

PACKAGE = Path(learn_rank.__file__).parent
_FOUNDATIONS = """
arrays artifact checkpoint checkpoint_reader compiled distributed durable errors fingerprints hashing ids inputs io
layers memory names options prefetch pretrained printable progress publish ranks registry scalars schedule schema
times trackers weights
"""
FOUNDATIONS = set(_FOUNDATIONS.split())
SHARED = {"store", "data", "adaptor"}
SERVING = {"serving"}  # what a service loads; a ranker is written in its format
STAGES = {"content", "alignment", "ranker", "evaluation", "integrations"}
# stage -> its rooms, files and folders, in levels from bottom to top; those of one level may import each other
ROOMS = {
    "ranker": "options < data < backbones < tables < model tasks inputs sharding scoring trained < training < outputs",
}


def imported_files(path: Path) -> set[Path]:
    """Files of the package that a file imports, inside functions too; a package is its __init__.py."""
    files = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            files |= {file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            files |= {file_of(f"{node.module}.{alias.name}") or file_of(node.module) for alias in node.names}
    return {file for file in files if file is not None} - {path}


def file_of(module: str) -> Path | None:
    """The file of a module of the package, None for any other name."""
    top, *parts = module.split(".")
    if top != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*parts)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if parts and file.is_file():
            return file
    return None


def circles(imports: dict[Path, set[Path]]) -> set[tuple[Path, ...]]:
    """Groups of files each of which reaches all the others of its group by imports."""
    reached: dict[Path, set[Path]] = {}
    for start in imports:
        seen, waiting = set(), [start]
        while waiting:
            for file in imports.get(waiting.pop(), set()) - seen:
                seen.add(file)
                waiting.append(file)
        reached[start] = seen
    return {
        tuple(sorted({start} | {other for other in reached[start] if start in reached[other]}))
        for start in imports
        if start in reached[start]
    }


def imported_parts(path: Path) -> set[str]:
    """Names X of every `learn_rank.X` that a file imports, inside functions too."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [
                f"{node.module}.{alias.name}" if node.module == "learn_rank" else node.module for alias in node.names
            ]
        parts |= {name.split(".")[1] for name in names if name.startswith("learn_rank.")}
    return parts - {"__version__"}


def test_imports_point_down_only() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 30
    for path in files:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        allowed = {own} | FOUNDATIONS
        if own in SERVING:
            allowed |= SHARED
        if own in STAGES:
            allowed |= SHARED | SERVING
        if own in ("cli", "__main__"):
            allowed |= SHARED | SERVING | STAGES | {"cli"}
        assert imported_parts(path) <= allowed, path


def test_every_part_of_the_package_has_a_layer() -> None:
    known = FOUNDATIONS | SHARED | SERVING | STAGES | {"cli", "__init__", "__main__", "configs", "__pycache__", "py"}
    assert {path.name.split(".")[0] for path in PACKAGE.iterdir()} - known <= {"py"}


def test_no_two_files_import_each_other() -> None:
    imports = {path: imported_files(path) for path in PACKAGE.rglob("*.py")}
    assert sum(map(len, imports.values())) > 300
    named = {tuple(str(file.relative_to(PACKAGE)) for file in circle) for circle in circles(imports)}
    assert not named


def test_a_circle_is_seen_through_other_files() -> None:
    a, b, c, d = (Path(name) for name in "abcd")
    assert circles({a: {b}, b: {c}, c: {a, d}, d: set()}) == {(a, b, c)}
    assert circles({a: {b, c}, b: {d}, c: {d}, d: set()}) == set()


def room_of(path: Path) -> str:
    """The folder of a stage that a file is in, or its own name; every options.py is in the room of the options."""
    return "options" if path.name == "options.py" else path.relative_to(PACKAGE).parts[1].removesuffix(".py")


@pytest.mark.parametrize("stage", ROOMS)
def test_rooms_of_a_stage_import_downwards_only(stage: str) -> None:
    levels = [level.split() for level in ROOMS[stage].split(" < ")]
    level_of = {room: number for number, rooms in enumerate(levels) for room in rooms}
    files = set((PACKAGE / stage).rglob("*.py")) - {PACKAGE / stage / "__init__.py"}
    rooms = {path: room_of(path) for path in files}
    assert set(rooms.values()) == set(level_of)
    for path, room in rooms.items():
        for other in imported_files(path) & rooms.keys():
            assert level_of[rooms[other]] <= level_of[room], f"{path} imports {other}"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "pyarrow", "sklearn", "duckdb", "hydra", "transformers", "torchrec", "fbgemm_gpu"}
    assert not loaded_by("import learn_rank") & heavy


def test_evaluation_and_the_command_lines_help_need_no_torch() -> None:
    assert "torch" not in loaded_by("import learn_rank.evaluation")
    assert "torch" not in loaded_by("from learn_rank.cli.main import main; main(['pipeline', '--help'])")


def test_compiled_code_is_cached_in_one_way() -> None:
    """numba's own njit cannot be imported where neither the package nor the home may be written."""
    taken = {path.name for path in PACKAGE.rglob("*.py") if "from numba import njit" in path.read_text()}
    assert (PACKAGE / "compiled.py").is_file()
    assert not taken
