from __future__ import annotations

import numpy as np
import pytest

from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.engine import overall_auc, plan
from learn_rank.evaluation.engine.overall_auc import count_equal, join_entries, range_of_bins, rows_below
from learn_rank.evaluation.engine.score_bins import Tally, count_bins, score_bits

METRICS = ("baseline", "treatment", "delta_pp")


def _log(seed, num_rows, score):
    """score(rng, size) makes the scores of an arm."""
    rng = np.random.default_rng(seed)
    return {
        "user_id": rng.integers(0, num_rows // 10, num_rows),
        "click": rng.random(num_rows) < 0.3,
        "a": score(rng, num_rows),
        "b": score(rng, num_rows),
        "segment": rng.choice(["x", "y"], num_rows),
    }


def _slices(log, auc):
    options = EvaluateOptions("click", "a", "b", auc=auc, bootstrap_samples=0, threads=2)
    report = evaluate(log, item_segments="segment", options=options).to_json()
    return [report["overall"], *report["segments"]]


def _probabilities(rng, size):
    return rng.random(size).astype(np.float32)


def _repeated(rng, size):
    return rng.choice([0.0, 0.25, 0.5, 1.0], size, p=[0.1, 0.7, 0.1, 0.1])


@pytest.mark.parametrize("scores", [_probabilities, _repeated])
def test_the_number_of_score_ranges_and_counting_in_pieces_change_nothing(scores, monkeypatch):
    log = _log(0, 6000, scores)
    whole = _slices(log, "exact")
    monkeypatch.setattr(plan, "_SCORE_RANGE_ROWS", 100)  # 60 ranges
    ranges = _slices(log, "exact")
    monkeypatch.setattr(overall_auc, "_MANY_ROWS", 30)  # so that every range is counted in pieces
    pieces = _slices(log, "exact")
    for by_whole, by_ranges, by_pieces in zip(whole, ranges, pieces, strict=True):
        assert by_whole["auc"] == by_ranges["auc"] == by_pieces["auc"]
        for name in ("baseline", "treatment"):
            if "ece" in by_whole:
                assert by_ranges["ece"][name] == pytest.approx(by_whole["ece"][name], abs=1e-12)
                assert by_pieces["ece"][name] == pytest.approx(by_whole["ece"][name], abs=1e-12)


def test_the_histogram_is_within_its_bound_and_the_bound_is_small():
    for seed in range(3):
        log = _log(seed, 20_000, _probabilities)
        for exact, binned in zip(_slices(log, "exact"), _slices(log, "histogram"), strict=True):
            bound = binned["auc"]["error_bound_pp"]
            assert 0 < bound < 0.05  # a twentieth of a point
            for name in ("baseline", "treatment"):
                assert 100 * abs(binned["auc"][name] - exact["auc"][name]) <= bound
            assert binned["uauc"] == exact["uauc"]
            assert binned["auc"]["ci95_pp"] == pytest.approx(
                np.array(exact["auc"]["ci95_pp"]) + binned["auc"]["delta_pp"] - exact["auc"]["delta_pp"], abs=1e-9
            )


def test_scores_apart_from_each_other_have_the_same_auc_in_bins():
    log = _log(4, 3000, lambda rng, size: 1.01 ** -rng.integers(0, 900, size))
    for exact, binned in zip(_slices(log, "exact"), _slices(log, "histogram"), strict=True):
        assert [exact["auc"][name] for name in METRICS] == [binned["auc"][name] for name in METRICS]


def test_the_bound_of_two_scores_in_one_bin_is_a_half():
    log = {"user_id": [1, 2], "click": [1, 0], "a": [0.5 + 1e-9, 0.5]}
    auc = evaluate(log, options=EvaluateOptions("click", "a", auc="histogram")).to_json()["overall"]["auc"]
    assert (auc["baseline"], auc["error_bound_pp"]) == (0.5, 50.0)


def test_without_a_global_auc_there_is_none_and_the_rest_is_the_same():
    log = _log(5, 2000, _probabilities)
    for exact, off in zip(_slices(log, "exact"), _slices(log, "off"), strict=True):
        assert "auc" not in off
        assert "ece" not in off  # its bins come from the same pass
        holm = {"p_value_holm"}  # of a smaller family
        assert {k: off["uauc"][k] for k in off["uauc"].keys() - holm} == {
            k: exact["uauc"][k] for k in exact["uauc"].keys() - holm
        }
        assert off["log_loss"] == exact["log_loss"]


def test_equal_scores_and_payloads_become_one_entry_however_they_are_cut():
    rng = np.random.default_rng(6)
    codes, payload = rng.integers(0, 9, 500).astype(np.uint32), rng.integers(0, 3, 500).astype(np.uint16)
    whole = count_equal(codes, payload)
    pairs, counts = np.unique(np.stack([codes, payload]), axis=1, return_counts=True)
    assert np.stack([whole.codes, whole.payload]).tolist() == pairs.tolist()
    assert whole.weights.tolist() == counts.tolist()
    joined = join_entries([count_equal(codes[at : at + 90], payload[at : at + 90]) for at in range(0, 500, 90)])
    assert (np.diff(joined.codes.astype(int)) >= 0).all()
    again = np.zeros((9, 3), int)
    np.add.at(again, (joined.codes, joined.payload), joined.weights)
    assert again[whole.codes, whole.payload].tolist() == counts.tolist()


def test_ranges_rise_with_the_bins_hold_about_equal_rows_and_know_what_lies_below(monkeypatch):
    monkeypatch.setattr(overall_auc, "_RANGE_ROWS", 1000)
    rng = np.random.default_rng(7)
    payload = rng.integers(0, 2, 50_000).astype(np.uint16)
    tally = Tally.zero(20, 2)
    bins = count_bins(score_bits(rng.random(50_000, np.float32)), payload, 20, *tally)
    ranges = range_of_bins(tally)
    assert (np.diff(ranges.astype(int)) >= 0).all()
    rows = np.bincount(ranges[bins])
    assert len(rows) == 50
    assert rows.max() < 1200
    below = rows_below(tally, ranges)
    for part in (0, 1, 49):
        lower = ranges[bins] < part
        assert below[part].tolist() == np.bincount(payload[lower], minlength=2).tolist()


def test_a_range_that_one_score_fills_is_counted_in_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    codes = np.sort(rng.integers(0, 5, 1000)).astype(np.uint32)
    payload = rng.integers(0, 4, 1000).astype(np.uint16)
    whole = overall_auc.sorted_entries(codes, payload)
    monkeypatch.setattr(overall_auc, "_MANY_ROWS", 64)
    pieces = [(codes[:300], payload[:300]), (codes[300:], payload[300:])]
    counted = overall_auc.entries_of(pieces)
    assert len(counted.codes) < len(codes) / 5
    assert counted.weights.sum() == 1000
    for entries in (whole, counted):
        back = [np.concatenate(parts) for parts in zip(*entries.rows(), strict=True)]
        assert (np.bincount(back[0] * 4 + back[1]) == np.bincount(codes * 4 + payload)).all()
        assert (np.diff(back[0].astype(int)) >= 0).all()
