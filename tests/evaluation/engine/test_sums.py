from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation import EvaluateOptions
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.engine.local import run
from learn_rank.evaluation.engine.overall_auc import fill_from_tallies
from learn_rank.evaluation.engine.sums import SKETCH_SIZE, State, estimate_distinct, over_users, sketch
from learn_rank.evaluation.evaluate import make_report
from learn_rank.evaluation.input.inputs import EvaluationInputs, open_inputs
from learn_rank.evaluation.input.part import Part


def _layout(*, labels, arms=2, users=(), items=(), value="", is_wide=False):
    options = EvaluateOptions(labels, "a0", [f"a{m}" for m in range(1, arms)], value=value, value_top=[1, 3])
    return Layout.of(options, user_segments=users, item_segments=items, is_wide=is_wide)


def test_all_users_come_before_the_segments_of_users():
    sums = np.arange(2 * 3 * 2).reshape(2, 3, 2)
    assert over_users(sums)[0].tolist() == [0 + 2 + 4, 1 + 3 + 5, 0, 1, 2, 3, 4, 5]


def test_states_of_different_evaluations_do_not_add_up():
    first, second = (State.zero(_layout(labels=label), num_bins=5) for label in ("l", "m"))
    with pytest.raises(InputError, match="states of different evaluations"):
        first.add(second)


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
def opened(generated) -> EvaluationInputs:
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
    merged = State.zero(Layout.of_inputs(opened), num_bins=20)
    for part in parts[::-1]:
        merged.add(part)
    fill_from_tallies(merged)
    for name in ("counts", "auc_bins", "users_per_segment", "wins2"):
        assert (getattr(merged, name) == getattr(whole, name)).all(), name
    for name in ("moments", "buckets", "row_sums", "reliability"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-11, atol=1e-11)
    for name in ("num_rows", "unlisted_users"):
        assert getattr(merged, name) == getattr(whole, name)
    assert merged.score_range.tolist() == whole.score_range.tolist()
    assert merged.user_sketch.tolist() == whole.user_sketch.tolist()

    whole_report, merged_report = _report(whole, opened.options), _report(merged, opened.options)
    for a, b in zip(
        [whole_report["overall"], *whole_report["segments"]],
        [merged_report["overall"], *merged_report["segments"]],
        strict=True,
    ):
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
        state = State.zero(Layout.of_inputs(opened), num_bins=20)
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
