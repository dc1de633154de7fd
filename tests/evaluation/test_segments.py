from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation.segments import SegmentOptions, assign_segments


def _counts(counts: dict, column: str = "user_id") -> pa.Table:
    return pa.table({column: list(counts), "num_interactions": list(counts.values())})


def _by_shares(counts: list[int], shares: list[float]) -> list[int]:
    table = _counts(dict(enumerate(counts)))
    options = SegmentOptions(user_proportions=shares)
    return assign_segments(pa.array(range(len(counts))), table, entity="user", options=options).codes.tolist()


def test_thresholds_are_the_largest_count_of_their_segment():
    found = assign_segments(pa.array([1, 2, 3, 4]), _counts({1: 5, 2: 6, 3: 50, 4: 51}), entity="user")
    assert found.codes.tolist() == [0, 1, 1, 2]


def test_an_id_without_counts_has_no_interactions():
    found = assign_segments(pa.array(["b", "new"]), _counts({"a": 9, "b": 99}), entity="user")
    assert found.codes.tolist() == [2, 0]
    assert found.num_without_history == 1


def test_items_have_thresholds_of_their_own():
    options = SegmentOptions(item_cold_start_max=0, item_long_tail_max=10)
    found = assign_segments(pa.array([1, 2]), _counts({1: 1, 2: 11}, "item_id"), entity="item", options=options)
    assert found.codes.tolist() == [1, 2]


def test_proportions_are_shares_of_the_evaluated_ids():
    assert _by_shares([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [0.1, 0.3]) == [2, 2, 2, 2, 2, 2, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("counts", "wanted", "num_cold_start"),
    [([1, 2, 2, 3, 4, 5, 6, 7, 8, 9], 0.15, 1), ([1, 2, 2, 3, 4, 5, 6, 7, 8, 9], 0.25, 3), ([1, 1, 1, 2, 3], 0.2, 3)],
)
def test_a_tie_at_a_cut_stays_together_where_the_share_is_nearer(counts, wanted, num_cold_start):
    assert _by_shares(counts, [wanted, 0.0]) == [0] * num_cold_start + [2] * (len(counts) - num_cold_start)


def test_a_tie_equally_near_goes_to_the_side_of_fewer_interactions():
    assert _by_shares([1, 2, 2, 3, 4, 5, 6, 7, 8, 9], [0.2, 0.0])[:4] == [0, 0, 0, 2]


def test_ids_without_history_are_cold_start_however_many_they_are():
    assert _by_shares([0, 0, 0, 0, 0, 0, 3, 4], [0.07, 0.28]) == [0] * 6 + [2, 2]


def test_a_segment_can_be_left_out_by_a_share_of_zero():
    assert _by_shares([0, 1, 2, 3], [0.0, 0.5]) == [1, 1, 2, 2]


def test_int32_ids_and_dictionary_strings_find_their_counts():
    assert assign_segments(pa.array([7], pa.int32()), _counts({7: 60}), entity="user").codes.tolist() == [2]
    ids = pa.array(["x"]).dictionary_encode()
    assert assign_segments(ids, _counts({"x": 60}), entity="user").codes.tolist() == [2]


def test_counts_are_read_from_parquet(tmp_path):
    pq.write_table(_counts({1: 60}), tmp_path / "user_counts.parquet")
    assert assign_segments(pa.array([1]), tmp_path / "user_counts.parquet", entity="user").codes.tolist() == [2]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"user": [1], "num_interactions": [1]}), "user_counts: no column 'user_id'; did you mean 'user'"),
        (pa.table({"user_id": [1, 1], "num_interactions": [1, 9]}), "id 1 more than once"),
        (pa.table({"user_id": [1, None], "num_interactions": [1, 2]}), "first in row 1"),
        (pa.table({"user_id": [1, 2], "num_interactions": [1, -2]}), "is -2 in row 1"),
        (pa.table({"user_id": [1], "num_interactions": ["1"]}), "is string, expected integers"),
        (pa.table({"user_id": ["1"], "num_interactions": [1]}), "the predictions' is int64"),
        (pa.table({"user_id": [1.5], "num_interactions": [1]}), "is double, expected integers or strings"),
    ],
)
def test_bad_counts_name_table_column_and_row(table, message):
    with pytest.raises(InputError, match=message):
        assign_segments(pa.array([1]), table, entity="user")


@pytest.mark.parametrize(
    "knobs",
    [
        {"user_cold_start_max": 50},
        {"item_cold_start_max": -1},
        {"user_proportions": [0.1]},
        {"item_proportions": [0.7, 0.4]},
        {"item_proportions": [-0.1, 0.4]},
    ],
)
def test_impossible_options_are_refused(knobs):
    with pytest.raises(InputError, match="segments"):
        SegmentOptions(**knobs)
