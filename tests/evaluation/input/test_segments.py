from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation.input.cuts import choose_cuts
from learn_rank.evaluation.input.segments import MAX_SEGMENTS, SegmentSource, open_segments
from learn_rank.evaluation.options import SegmentOptions

OPTIONS = SegmentOptions()


def _counts(counts: dict, column: str = "user_id") -> pa.Table:
    return pa.table({column: list(counts), "num_interactions": list(counts.values())})


def _named(segments: dict, column: str = "user_id") -> pa.Table:
    return pa.table({column: pa.array(list(segments)), "segment": pa.array(list(segments.values()), pa.string())})


def _read(source: SegmentSource) -> dict:
    """id -> segment name of everything the source holds."""
    return {
        id_: source.names[code]
        for ids, codes in source.batches()
        for id_, code in zip(ids.to_pylist(), codes, strict=True)
    }


def _by_shares(counts: list[int], shares: list[float]) -> list[int]:
    table = _counts(dict(enumerate(counts)))
    source = open_segments(table, entity="user", options=SegmentOptions(user_proportions=shares))
    return [int(code) for _, codes in source.batches() for code in codes]


def test_thresholds_are_the_largest_count_of_their_segment():
    source = open_segments(_counts({1: 5, 2: 6, 3: 50, 4: 51}), entity="user", options=OPTIONS)
    assert _read(source) == {1: "cold_start", 2: "long_tail", 3: "long_tail", 4: "others"}
    assert source.names == ("cold_start", "long_tail", "others")
    assert source.rule == {"cold_start_max": 5, "long_tail_max": 50, "proportions": None}
    assert (source.entity, source.num_rows) == ("user", 4)


def test_an_id_that_the_counts_do_not_hold_has_no_interactions():
    source = open_segments(_counts({"a": 9}), entity="user", options=OPTIONS)
    assert source.names[source.default] == "cold_start"


def test_items_have_thresholds_of_their_own():
    options = SegmentOptions(item_cold_start_max=0, item_long_tail_max=10)
    source = open_segments(_counts({1: 1, 2: 11}, "item_id"), entity="item", options=options)
    assert _read(source) == {1: "long_tail", 2: "others"}


def test_proportions_are_shares_of_the_ids_of_the_file():
    assert _by_shares([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [0.1, 0.3]) == [2, 2, 2, 2, 2, 2, 1, 1, 1, 0]
    options = SegmentOptions(user_proportions=[0.1, 0.3])
    source = open_segments(_counts(dict(enumerate(range(10)))), entity="user", options=options)
    assert source.rule == {"cold_start_max": 0, "long_tail_max": 3, "proportions": [0.1, 0.3]}


@pytest.mark.parametrize(
    ("counts", "wanted", "num_cold_start"),
    [([1, 2, 2, 3, 4, 5, 6, 7, 8, 9], 0.15, 1), ([1, 2, 2, 3, 4, 5, 6, 7, 8, 9], 0.25, 3), ([1, 1, 1, 2, 3], 0.2, 3)],
)
def test_a_tie_at_a_cut_stays_together_where_the_share_is_nearer(counts, wanted, num_cold_start):
    assert _by_shares(counts, [wanted, 0.0]) == [0] * num_cold_start + [2] * (len(counts) - num_cold_start)


def test_a_tie_equally_near_goes_to_the_side_of_fewer_interactions():
    assert _by_shares([1, 2, 2, 3, 4, 5, 6, 7, 8, 9], [0.2, 0.0])[:4] == [0, 0, 0, 2]


def test_the_smallest_count_is_cold_start_however_many_ids_have_it():
    assert _by_shares([1, 1, 1, 1, 1, 1, 3, 4], [0.07, 0.28]) == [0] * 6 + [2, 2]


def test_a_share_of_zero_leaves_a_segment_out_for_unknown_ids_too():
    assert _by_shares([0, 1, 2, 3], [0.0, 0.5]) == [1, 1, 2, 2]
    options = SegmentOptions(user_proportions=[0.0, 0.5])
    assert open_segments(_counts({1: 1, 2: 9}), entity="user", options=options).default == 1


def test_cuts_of_a_histogram_equal_cuts_of_its_ids():
    counts = np.random.default_rng(0).geometric(0.05, 500)
    values, sizes = np.unique(counts, return_counts=True)
    cuts = choose_cuts(dict(zip(values.tolist(), sizes.tolist(), strict=True)), [0.1, 0.3])
    reached = [np.mean(counts <= cut) for cut in range(200)]
    assert abs(reached[cuts.cold_start_max] - 0.1) == pytest.approx(min(abs(np.array(reached) - 0.1)))
    assert abs(reached[cuts.long_tail_max] - 0.4) == pytest.approx(min(abs(np.array(reached) - 0.4)))


def test_a_segment_column_is_taken_as_it_is_and_before_counts():
    table = _named({1: "others", 2: "cold_start"}).append_column("num_interactions", pa.array([0, 99]))
    source = open_segments(table, entity="user", options=OPTIONS)
    assert _read(source) == {1: "others", 2: "cold_start"}
    assert source.rule == {"cold_start_max": None, "long_tail_max": None, "proportions": None}


def test_the_usual_names_keep_their_empty_segments_and_unknown_ids_are_cold_start():
    source = open_segments(_named({1: "others"}), entity="user", options=OPTIONS)
    assert source.names == ("cold_start", "long_tail", "others")
    assert source.default == 0


def test_other_names_are_sorted_behind_the_usual_ones():
    source = open_segments(
        _named({1: "whale", 2: "others", 3: "gift", 4: "cold_start"}), entity="user", options=OPTIONS
    )
    assert source.names == ("cold_start", "others", "gift", "whale")
    assert source.default == 0
    assert _read(source) == {1: "whale", 2: "others", 3: "gift", 4: "cold_start"}


def test_ids_unknown_to_a_file_of_other_names_are_unlisted():
    source = open_segments(_named({1: "paid", 2: "free"}), entity="user", options=OPTIONS)
    assert source.names == ("free", "paid", "unlisted")
    assert source.default == 2
    own = open_segments(_named({1: "zebra", 2: "unlisted"}), entity="user", options=OPTIONS)
    assert own.names == ("unlisted", "zebra")
    assert own.default == 0


def test_there_is_a_largest_number_of_names_and_the_unlisted_count_as_one():
    names = [f"segment {n}" for n in range(MAX_SEGMENTS)]
    table = _named(dict(enumerate([*names[1:], "cold_start"])))
    assert len(open_segments(table, entity="user", options=OPTIONS).names) == MAX_SEGMENTS
    with pytest.raises(InputError, match="need one more"):
        open_segments(_named(dict(enumerate(names))), entity="user", options=OPTIONS)
    with pytest.raises(InputError, match=r"column 'segment' holds more than 15 names"):
        open_segments(_named(dict(enumerate([*names, "cold_start"]))), entity="user", options=OPTIONS)


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (pa.array([], pa.int32()), OPTIONS),
        (pa.array([], pa.int32()), SegmentOptions(user_proportions=[0.1, 0.2])),
        (pa.array([], pa.string()), OPTIONS),
    ],
)
def test_an_empty_file_is_legal_and_everyone_is_cold_start(tmp_path, column, options):
    name = "num_interactions" if pa.types.is_integer(column.type) else "segment"
    pq.write_table(pa.table({"user_id": pa.array([], pa.int64()), name: column}), tmp_path / "u.parquet")
    source = open_segments(tmp_path / "u.parquet", entity="user", options=options)
    assert _read(source) == {}
    assert source.names[source.default] == "cold_start"


def test_ids_are_int64_or_strings_whatever_the_writer_chose():
    small = pa.table({"user_id": pa.array([7], pa.uint16()), "num_interactions": pa.array([60], pa.uint8())})
    source = open_segments(small, entity="user", options=OPTIONS)
    assert source.id_type == next(source.batches())[0].type == pa.int64()
    text = pa.table({"user_id": pa.array(["x"]).dictionary_encode(), "segment": pa.array(["gift"]).dictionary_encode()})
    source = open_segments(text, entity="user", options=OPTIONS)
    assert source.id_type == next(source.batches())[0].type == pa.large_string()
    assert _read(source) == {"x": "gift"}


def test_a_folder_is_read_file_by_file_and_a_table_batch_by_batch(tmp_path):
    pq.write_table(_counts({1: 60, 2: 3}), tmp_path / "a.parquet", row_group_size=1)
    (tmp_path / "more").mkdir()
    pq.write_table(_counts({3: 7}), tmp_path / "more" / "b.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    source = open_segments(tmp_path, entity="user", options=OPTIONS)
    assert _read(source) == {1: "others", 2: "cold_start", 3: "long_tail"}
    assert source.num_rows == 3
    many = _counts(dict.fromkeys(range(300_000), 1))
    assert len(list(open_segments(many, entity="user", options=OPTIONS).batches())) > 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"user": [1], "num_interactions": [1]}), "user_segments: no column 'user_id'; did you mean 'user'"),
        (pa.table({"user_id": [1], "n": [1]}), "neither column 'segment' nor 'num_interactions'; it has user_id, n"),
        (
            pa.table({"user_id": [1, None], "num_interactions": [1, 2]}),
            "column 'user_id' has nulls, the first in row 1",
        ),
        (
            pa.table({"user_id": [1, 2], "num_interactions": [1, None]}),
            "'num_interactions' has nulls, the first in row 1",
        ),
        (pa.table({"user_id": [1, 2], "num_interactions": [1, -2]}), "is -2 in row 1, expected 0 or more"),
        (pa.table({"user_id": [1], "num_interactions": ["1"]}), "is string, expected integers"),
        (pa.table({"user_id": [1], "num_interactions": [1.0]}), "is double, expected integers"),
        (pa.table({"user_id": [1], "num_interactions": pa.array([2**63], pa.uint64())}), "beyond int64"),
        (pa.table({"user_id": [1.5], "num_interactions": [1]}), "is double, expected integers or strings"),
        (pa.table({"user_id": [1, 2], "segment": ["a", None]}), "column 'segment' has nulls, the first in row 1"),
        (pa.table({"user_id": [1], "segment": [3]}), "column 'segment' is int64, expected strings"),
        (
            pa.table({"user_id": [1, 2], "segment": pa.DictionaryArray.from_arrays([0, 1], pa.array(["a", None]))}),
            "column 'segment' has nulls, the first in row 1",
        ),
    ],
)
def test_bad_segments_name_table_column_and_row(table, message):
    with pytest.raises(InputError, match=message):
        _read(open_segments(table, entity="user", options=OPTIONS))


def test_a_bad_row_is_counted_over_the_file_not_the_batch(tmp_path):
    counts = np.ones(300_000, np.int64)
    counts[299_999] = -1
    path = tmp_path / "u.parquet"
    pq.write_table(pa.table({"user_id": np.arange(300_000), "num_interactions": counts}), path)
    with pytest.raises(InputError, match=r"u\.parquet: column 'num_interactions' is -1 in row 299999"):
        _read(open_segments(path, entity="user", options=OPTIONS))


def test_files_that_are_absent_cut_short_or_of_two_id_types_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.parquet: no such file"):
        open_segments(tmp_path / "none.parquet", entity="user", options=OPTIONS)
    with pytest.raises(InputError, match=r"a folder without \.parquet files"):
        open_segments(tmp_path, entity="user", options=OPTIONS)
    path = tmp_path / "u.parquet"
    pq.write_table(_counts({n: n % 97 for n in range(5000)}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="not a whole Parquet file"):
        open_segments(path, entity="user", options=OPTIONS)
    path.write_bytes(whole[:4] + b"\xff" * 2000 + whole[2004:])
    with pytest.raises(InputError, match=r"u\.parquet: cannot be read to its end"):
        _read(open_segments(path, entity="user", options=OPTIONS))
    path.write_bytes(whole)
    pq.write_table(_counts({"a": 1}), tmp_path / "v.parquet")
    with pytest.raises(InputError, match="int64 in some files and string in others"):
        open_segments(tmp_path, entity="user", options=OPTIONS)
