"""Rows find their user, users their segment, and both their place."""

from __future__ import annotations

import numpy as np
import pytest

from learn_rank.evaluation.engine.grouping import (
    arrange,
    arranged_columns,
    group_users,
    segments_in_rows,
    segments_in_table,
)
from learn_rank.evaluation.engine.packed_rows import pack_words
from learn_rank.hashing import hash_int64


def _rows(users, flags, scores, *, bits):
    """(rows, starts) of int64 users, ordered by partition."""
    columns = [np.asarray(scores, np.float32)]
    return pack_words(hash_int64(np.asarray(users)), np.asarray(flags, np.uint32), columns, bits=bits)


@pytest.mark.parametrize("num_users", [1, 700, 9000])  # 700 and 9,000 outgrow the first table
def test_users_are_numbered_as_they_come_and_keep_their_hash(num_users):
    users = np.random.default_rng(0).integers(0, num_users, 12_000)
    rows, starts = _rows(users, np.arange(len(users)) % 8, np.arange(len(users)), bits=3)
    seen_users = set()
    for p in range(8):
        part = rows[starts[p] : starts[p + 1]]
        local, rest = group_users(part, 3)
        assert len(local) == len(part)
        own = users[np.ascontiguousarray(part[:, 2]).view(np.float32).astype(int)]
        of_user = dict(zip(own.tolist(), local.tolist(), strict=True))
        assert len(of_user) == len(rest) == len(set(local.tolist()))
        assert [of_user[user] for user in own.tolist()] == local.tolist()
        whole = (rest[local] | np.uint64(p << 61)).tolist()
        assert whole == hash_int64(own).tolist()
        seen_users |= set(of_user)
    assert seen_users == set(users.tolist())


def test_a_partition_without_rows_has_no_users():
    local, hashes = group_users(np.zeros((0, 3), np.uint32), 4)
    assert (len(local), len(hashes)) == (0, 0)


def _rest(user, bits):
    """What is left of a user's hash below its partition."""
    return int(hash_int64(np.array([user]))[0]) & (1 << 64 - bits) - 1


def test_segments_of_users_come_from_their_rows_and_must_agree():
    rows, _ = _rows([7, 8, 7, 9], [0b010, 0b100, 0b011, 0b000], [0] * 4, bits=3)  # bit 0 is a label
    local, hashes = group_users(rows, 3)
    segments, twice = segments_in_rows(rows, local, 3, 1, 3)
    segment_of = dict(zip(hashes.tolist(), segments.tolist(), strict=True))
    assert (segment_of, twice) == ({_rest(7, 3): 1, _rest(8, 3): 2, _rest(9, 3): 0}, -1)

    rows, _ = _rows([7, 8, 7, 9], [0b010, 0b100, 0b110, 0b000], [0] * 4, bits=3)
    local, hashes = group_users(rows, 3)
    assert hashes[segments_in_rows(rows, local, 3, 1, 3)[1]] == _rest(7, 3)


def test_segments_of_users_come_from_a_table_that_holds_each_once():
    rows, _ = _rows([7, 8, 9], [0] * 3, [0] * 3, bits=3)
    hashes = group_users(rows, 3)[1]
    table, _ = pack_words(hash_int64(np.array([9, 5, 7, 5])), np.array([3, 1, 2, 1], np.uint32), [], bits=3)
    segments, twice, num_unlisted = segments_in_table(hashes, table, 3, 6)
    segment_of = dict(zip(hashes.tolist(), segments.tolist(), strict=True))
    assert segment_of == {_rest(7, 3): 2, _rest(8, 3): 6, _rest(9, 3): 3}  # user 8 is not in the table
    assert (twice, num_unlisted) == (-1, 1)  # user 5 is there twice, but has no rows

    table, _ = pack_words(hash_int64(np.array([9, 7, 7])), np.array([3, 2, 2], np.uint32), [], bits=3)
    assert hashes[segments_in_table(hashes, table, 3, 0)[1]] == _rest(7, 3)


def test_rows_are_arranged_by_user_then_class_then_item_segment():
    # label bit 0, the bit that a row must have to count 1, item segment bits 2 and 3
    flags = [0b0011, 0b0110, 0b0111, 0b0001, 0b0010, 0b0110]
    rows, _ = _rows([5, 5, 5, 5, 5, 6], flags, [1, 2, 3, 4, 5, 6], bits=4)
    local = np.array([0, 0, 0, 0, 0, 1], np.int32)
    rows = rows[np.argsort(np.ascontiguousarray(rows[:, 2]).view(np.float32))]
    starts, places = arrange(rows, local, 2, positive_bit=0, given_bit=1, item_shift=2, item_mask=3, num_items=3)
    # user 0: negatives of item segments 0, 1, 2, then positives; user 1 the same
    assert np.diff(starts).tolist() == [1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert places[3] == -1  # it has not the given label
    columns = arranged_columns(rows, places, num_columns=1, num_rows=int(starts[-1]), is_wide=False)
    assert columns.tolist() == [[5, 2, 1, 3, 6]]
