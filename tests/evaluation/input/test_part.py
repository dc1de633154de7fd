from __future__ import annotations

import numpy as np
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation.input.part import Part
from learn_rank.hashing import hash_int64


def test_every_user_is_of_one_part_and_parts_are_of_about_one_size():
    hashes = hash_int64(np.arange(30_000))
    held = np.stack([Part(number, 3).holds(hashes) for number in range(3)])
    assert (held.sum(axis=0) == 1).all()
    assert held.sum(axis=1) == pytest.approx([10_000] * 3, rel=0.05)


@pytest.mark.parametrize("pair", [(2, 2), (-1, 2), (0, 0), (0, 1 << 31), (0.0, 2)])
def test_a_part_that_cannot_be_is_refused(pair):
    with pytest.raises(InputError, match="expected K/N with K from 0 to N - 1"):
        Part.of(pair)
