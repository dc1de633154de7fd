from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from learn_rank.evaluation.input.entity_segments import find_segments
from learn_rank.evaluation.input.item_lookup import ItemLookup
from learn_rank.evaluation.options import SegmentOptions
from learn_rank.hashing import hash_int64


def test_items_that_a_file_does_not_hold_are_all_counted_when_threads_meet():
    listed = pa.table({"item_id": [-1], "segment": ["others"]})
    lookup = ItemLookup.load(find_segments(listed, entity="item", columns=[], options=SegmentOptions()))
    num_threads, num_batches = 8, 150

    def work(thread):
        for batch in range(num_batches):
            lookup.codes(hash_int64(np.array([thread * num_batches + batch])))

    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(work, range(num_threads)))
    assert len(lookup.unlisted()) == num_threads * num_batches


def test_an_item_has_the_code_of_its_file_or_the_default_and_is_counted_once():
    listed = pa.table({"item_id": [7, 8, 9], "segment": ["others", "long_tail", "others"]})
    lookup = ItemLookup.load(find_segments(listed, entity="item", columns=[], options=SegmentOptions()))
    hashes = hash_int64(np.array([8, 7, 5, 7, 5, 6]))
    assert lookup.codes(hashes).tolist() == [1, 2, 0, 2, 0, 0]  # cold_start, long_tail, others
    assert lookup.listed_per_segment(3).tolist() == [0, 1, 1]
    assert lookup.listed(2).tolist() == [hashes[1]]
    assert lookup.unlisted().tolist() == sorted(hash_int64(np.array([5, 6])).tolist())
