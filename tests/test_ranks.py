from __future__ import annotations

import pytest

from learn_rank.errors import InputError
from learn_rank.ranks import Ranks, has_ranks, join_ranks


def fails() -> None:
    raise InputError("no such file")


def test_a_process_alone_does_all_of_it() -> None:
    assert not has_ranks()
    with join_ranks(timeout_seconds=1) as ranks:
        assert ranks == Ranks(rank=0, num_ranks=1, group=None)
        assert ranks.is_main
        assert ranks.on_main(lambda: 7) == 7
        assert ranks.totals([3, 4]) == [3, 4]
        with pytest.raises(InputError, match="no such file"):
            ranks.on_main(fails)


def test_a_group_that_the_caller_has_made_is_joined() -> None:
    pytest.importorskip("torch")
    from learn_rank.distributed import process_group

    with process_group():
        assert has_ranks()
        with join_ranks(timeout_seconds=60) as ranks:
            assert (ranks.rank, ranks.num_ranks) == (0, 1)
            assert ranks.group is not None
            assert ranks.on_main(lambda: "done") == "done"
            assert ranks.totals([3, 4]) == [3, 4]
        assert has_ranks()
    assert not has_ranks()
