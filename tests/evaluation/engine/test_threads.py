from __future__ import annotations

import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation.engine.threads import in_threads


def test_the_first_failure_stops_the_other_threads_and_is_raised():
    def work(thread, stop):
        if thread == 2:
            raise InputError("thread 2")
        stop.wait()  # for ever, if nobody stops it

    with pytest.raises(InputError, match="thread 2"):
        in_threads(4, work)
