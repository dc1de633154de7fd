from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation import EvaluateOptions
from learn_rank.evaluation.engine.local import run
from learn_rank.evaluation.engine.overall_auc import pool_tallies
from learn_rank.evaluation.engine.steps import Inputs, Part
from learn_rank.evaluation.engine.sums import (
    SKETCH_SIZE,
    Layout,
    Slices,
    State,
    Task,
    estimate_distinct,
    over_users,
    sketch,
)
from learn_rank.evaluation.evaluate import make_report, open_inputs


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


def test_all_users_come_before_the_segments_of_users():
    sums = np.arange(2 * 3 * 2).reshape(2, 3, 2)
    assert over_users(sums)[0].tolist() == [0 + 2 + 4, 1 + 3 + 5, 0, 1, 2, 3, 4, 5]


def test_states_of_different_evaluations_do_not_add_up():
    one, other = (State.zero(_layout(labels=label), num_bins=5) for label in ("l", "m"))
    with pytest.raises(InputError, match="states of different evaluations"):
        one.add(other)


def test_centred_moments_are_the_squares_around_the_mean_placement():
    rng = np.random.default_rng(0)
    p, n = rng.integers(0, 6, 30).astype(float), rng.integers(1, 9, 30).astype(float)
    a, b = rng.normal(size=30) * p, rng.normal(size=30) * n
    state = State.zero(_layout(labels="l", arms=1), num_bins=5)
    state.counts[0, 0, 0, :2] = (p + n).sum(), p.sum()
    state.influence[0, 0, 0] = [
        x.sum() for x in (a * a, a * b, b * b, a * p, a * n, b * p, b * n, p * p, p * n, n * n, a, b)
    ]
    state.centre()
    u, v = a - p * a.sum() / p.sum(), b - n * b.sum() / n.sum()
    assert state.centred[0, 0, 0] == pytest.approx([(u * u).sum(), (u * v).sum(), (v * v).sum()], rel=1e-12)


def test_a_sketch_is_exact_while_small_and_near_when_full():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 200_000, dtype=np.uint64)
    assert estimate_distinct(sketch(hashes[:3000], hashes[1000:4000])) == 4000
    union = sketch(sketch(hashes[:150_000]), sketch(hashes[100_000:]))
    assert union.tolist() == sketch(hashes).tolist()
    assert len(union) == SKETCH_SIZE
    assert estimate_distinct(union) == pytest.approx(200_000, rel=4 * 0.016)


# ---- parts of disjoint users ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(generated) -> Inputs:
    options = EvaluateOptions(
        "click", "baseline", ["learn", "shuffled"], auc="histogram", bootstrap_samples=200, threads=2
    )
    return open_inputs(
        generated.predictions,
        user_segments=generated.user_counts,
        item_segments=generated.item_counts,
        options=options,
    )


def _part(opened, number, total):
    return run(replace(opened, part=Part(number, total)))[0]


def _report(state, options):
    return make_report(state, options, rules={}, sources={}).to_json()


def test_states_of_disjoint_users_add_up_to_the_whole(opened):
    whole = run(opened)[0]
    parts = [_part(opened, number, 3) for number in range(3)]
    assert min(part.num_rows for part in parts) > 0.25 * whole.num_rows
    merged = State.zero(opened.layout, num_bins=20)
    for part in parts[::-1]:
        merged.add(part)
    pool_tallies(merged)
    for name in ("counts", "auc_bins", "users_per_segment", "wins2"):
        assert (getattr(merged, name) == getattr(whole, name)).all(), name
    for name in ("moments", "buckets", "predicted", "reliability"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-11, atol=1e-11)
    for name in ("num_rows", "unlisted_users"):
        assert getattr(merged, name) == getattr(whole, name)
    assert merged.score_range.tolist() == whole.score_range.tolist()
    assert merged.user_sketch.tolist() == whole.user_sketch.tolist()

    one, other = _report(whole, opened.options), _report(merged, opened.options)
    for a, b in zip([one["overall"], *one["segments"]], [other["overall"], *other["segments"]], strict=True):
        for metric in ("uauc", "wuauc"):
            for key in ("ci95_pp", "bootstrap_ci95_pp", "p_value"):
                assert a[metric][key] == pytest.approx(b[metric][key], abs=1e-9)
        assert a["auc"]["delta_pp"] == pytest.approx(b["auc"]["delta_pp"], abs=1e-12)
        # each part takes placements among its own rows, so the width of this interval alone is an approximation
        low, high = a["auc"]["ci95_pp"]
        assert b["auc"]["ci95_pp"] == pytest.approx([low, high], abs=0.05 * (high - low))


def test_the_order_of_adding_does_not_matter(opened):
    parts = [_part(opened, number, 2) for number in range(2)]
    merged = []
    for order in (parts, parts[::-1]):
        state = State.zero(opened.layout, num_bins=20)
        for part in order:
            state.add(part)
        merged.append(state)
    for name in ("counts", "moments", "buckets", "centred", "users_per_segment"):
        np.testing.assert_array_equal(getattr(merged[0], name), getattr(merged[1], name))


def test_a_part_without_users_is_refused():
    log = {"user_id": [1, 1], "click": [1, 0], "a": [0.5, 0.1]}
    options = EvaluateOptions("click", "a")
    refused = 0
    for number in range(2):
        inputs = open_inputs(log, user_segments=None, item_segments=None, options=options, part=Part(number, 2))
        try:
            assert run(inputs)[0].num_rows == 2
        except InputError as error:
            refused += "no row of part" in str(error)
    assert refused == 1
