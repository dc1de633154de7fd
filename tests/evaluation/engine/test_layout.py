from __future__ import annotations

import pytest

from learn_rank.evaluation import EvaluateOptions
from learn_rank.evaluation.engine.layout import Layout, Slices, Task


def _layout(*, labels, arms=2, users=(), items=(), value="", is_wide=False):
    options = EvaluateOptions(labels, "a0", [f"a{m}" for m in range(1, arms)], value=value, value_top=[1, 3])
    return Layout.of(options, user_segments=users, item_segments=items, is_wide=is_wide)


@pytest.mark.parametrize("num_labels", [1, 4])
@pytest.mark.parametrize("num_users", [0, 1, 2, 3, 15])
@pytest.mark.parametrize("num_items", [0, 1, 2, 3, 15])
def test_labels_and_segments_have_bits_of_their_own_in_the_flags(num_labels, num_users, num_items):
    names = [str(i) for i in range(15)]
    layout = _layout(labels=[f"l{i}" for i in range(num_labels)], users=names[:num_users], items=names[:num_items])
    fields = [(1 << num_labels) - 1, layout.item_mask << layout.item_shift, layout.user_mask << layout.user_shift]
    assert sum(fields) == fields[0] | fields[1] | fields[2] == (1 << layout.flag_bits) - 1
    assert layout.item_mask >= max(num_items - 1, 0)
    assert layout.user_mask >= max(num_users - 1, 0)
    assert layout.flag_bits <= 12
    assert layout.num_payloads <= 1 << 16


def test_a_conditional_label_takes_the_rows_of_its_condition():
    layout = _layout(labels=["conversion|click", "click"])
    assert layout.label_columns == ("conversion", "click")
    assert layout.tasks == (Task("conversion|click", 0, 1), Task("click", 1, -1))
    # payloads 0 .. 3: bit 0 conversion, bit 1 click
    assert layout.classes(layout.tasks[0]).tolist() == [2, 2, 0, 1]
    assert layout.classes(layout.tasks[1]).tolist() == [0, 0, 1, 1]


def test_a_cell_lies_in_four_slices():
    slices = Slices(2, 3)
    assert slices.num == 12
    # user segment 1 with item segment 2: all; item segment 2; user segment 1; both
    assert slices.of_cells()[1 * 3 + 2].tolist() == [0, 1 + 2, 2 * 4, 2 * 4 + 1 + 2]
    assert sorted(slices.of_cells()[:, 3].tolist()) == [5, 6, 7, 9, 10, 11]


def test_rows_take_the_words_of_their_scores_and_of_the_value():
    assert [_layout(labels="l", arms=m).row_words for m in (1, 2, 8)] == [3, 4, 10]
    assert _layout(labels="l", is_wide=True).row_words == 2 + 2 * 2
    assert _layout(labels="l", value="price").row_words == 2 + 2 * 3  # a value makes all columns float64
