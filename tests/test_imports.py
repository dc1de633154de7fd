"""The direction of imports is part of the design: cli -> stages -> serving -> store, data, adaptor -> foundations."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

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
