from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from learn_rank.alignment.item_inputs import ItemInputs
from learn_rank.alignment.options import AlignOptions
from learn_rank.alignment.trained import load_tower, load_tower_state, read_id_items, save_tower, tower_state
from learn_rank.errors import InputError
from learn_rank.store.reader import FrozenStore
from tests.hostile import Runs

SMALL: dict[str, Any] = {"width": 16, "num_layers": 2, "num_heads": 2, "id_dim": 8, "max_history": 10}
TOWERS: list[dict[str, Any]] = [
    {},
    {"inputs": "id"},
    {"inputs": "content_and_id"},
    {"use_positions": True, "embedding_dim": 12},
    {"item_tower": "c"},
    {"objective": "none"},
]
CATALOGUE = pa.array(np.arange(100, 140))
Made = Callable[..., tuple[Any, ItemInputs]]


def outputs(tower: Any, item_inputs: ItemInputs) -> torch.Tensor:
    """[40, 2 D] users after items in the order of their ids, and the items."""
    rows = torch.from_numpy(item_inputs.rows_of(CATALOGUE))
    with torch.no_grad():
        users = tower(item_inputs.take(rows.view(4, 10), torch.device("cpu"))).flatten(0, 1)
        return torch.cat([users, tower.embed_items(item_inputs.take(rows, torch.device("cpu")))], dim=1)


@pytest.mark.parametrize("changes", TOWERS, ids=str)
def test_a_saved_tower_is_loaded_as_it_was(
    made: Made, content: FrozenStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    tower, item_inputs = made(changes)
    folder = tmp_path / "align"
    folder.mkdir()
    for _ in range(2):  # the second time over the first
        save_tower(folder, tower, item_inputs)
    options = AlignOptions(**{**SMALL, **changes})
    has_ids = options.inputs != "content"
    assert sorted(path.name for path in folder.iterdir()) == ["item_ids.parquet"] * has_ids + ["tower.pt"]
    opened = ItemInputs(
        [] if options.inputs == "id" else [content], catalogue=CATALOGUE, id_items=read_id_items(folder)
    )
    loaded = load_tower(folder, opened, options)
    assert not loaded.training
    assert torch.equal(outputs(loaded, opened), outputs(tower, item_inputs))


def test_a_state_put_back_undoes_what_came_after_it(made: Made) -> None:
    tower, item_inputs = made({"inputs": "content_and_id"})
    state = {name: value.clone() for name, value in tower_state(tower).items()}
    before = outputs(tower, item_inputs)
    with torch.no_grad():
        for weight in tower.parameters():
            weight += 0.1
    assert not torch.allclose(outputs(tower, item_inputs), before, atol=0.1)
    load_tower_state(tower, state, path=Path("tower.pt"), remedy="")
    assert torch.equal(outputs(tower, item_inputs), before)


def test_a_save_that_fails_leaves_the_tower_before_it(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower, item_inputs = made({})
    save_tower(tmp_path, tower, item_inputs)
    before = (tmp_path / "tower.pt").read_bytes()

    def fail(content: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("learn_rank.alignment.trained.torch.save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_tower(tmp_path, tower, item_inputs)
    assert (tmp_path / "tower.pt").read_bytes() == before


# Bad input


def test_content_of_another_width_is_refused(made: Made, tmp_path: Path) -> None:
    tower, item_inputs = made({})
    save_tower(tmp_path, tower, item_inputs)
    ids = ItemInputs([], catalogue=CATALOGUE, id_items=CATALOGUE)
    with pytest.raises(InputError, match="trained on content vectors of width 6, but the content store has 0; run"):
        load_tower(tmp_path, ids, AlignOptions(**SMALL))


def test_ids_of_another_training_are_refused(made: Made, tmp_path: Path) -> None:
    tower, item_inputs = made({"inputs": "id"})
    save_tower(tmp_path, tower, item_inputs)
    other = ItemInputs([], catalogue=CATALOGUE, id_items=CATALOGUE)
    with pytest.raises(InputError, match=r"trained with 31 rows of item ids, but item_ids.parquet makes 41; run"):
        load_tower(tmp_path, other, AlignOptions(**SMALL, inputs="id"))


def test_a_tower_with_one_bit_changed_is_damaged(made: Made, tmp_path: Path) -> None:
    tower, item_inputs = made({})
    save_tower(tmp_path, tower, item_inputs)
    path = tmp_path / "tower.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # of a weight
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tower\.pt: damaged.*; run `learn-rank align` again"):
        load_tower(tmp_path, item_inputs, AlignOptions(**SMALL))


def test_a_file_of_weights_that_is_no_tower_or_runs_something_is_refused(made: Made, tmp_path: Path) -> None:
    tower, item_inputs = made({})
    save_tower(tmp_path, tower, item_inputs)
    path, marker = tmp_path / "tower.pt", tmp_path / "ran"
    saved = torch.load(path, weights_only=True)
    for content, message in (
        ({**saved, "more": Runs(marker)}, "damaged, or holds more than tensors and plain values"),
        ({"weights": saved["weights"]}, "holds weights, expected content_dim"),
        ({**saved, "weights": {}}, "does not fit this tower, which differs in"),
        (
            {**saved, "weights": {**saved["weights"], "more": torch.ones(1)}},
            "does not fit this tower, which differs in 'more'",
        ),
        ({**saved, "weights": {name: torch.ones(1) for name in saved["weights"]}}, "does not fit this tower"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=rf"tower\.pt: {message}.*; run `learn-rank align` again"):
            load_tower(tmp_path, item_inputs, AlignOptions(**SMALL))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("left", "message"),
    [(None, r"tower\.pt: no such file; run"), (100, r"tower\.pt: damaged"), (0, r"tower\.pt: damaged")],
)
def test_an_absent_or_damaged_tower_is_one_line(made: Made, tmp_path: Path, left: int | None, message: str) -> None:
    tower, item_inputs = made({})
    save_tower(tmp_path, tower, item_inputs)
    path = tmp_path / "tower.pt"
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=message) as error:
        load_tower(tmp_path, item_inputs, AlignOptions(**SMALL))
    assert "\n" not in str(error.value)
