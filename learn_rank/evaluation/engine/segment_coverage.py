"""Do the segments speak of these users and items? A file of other ids would put everybody into one segment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from learn_rank.errors import InputError
from learn_rank.evaluation.engine.sums import State, sketch
from learn_rank.evaluation.input.inputs import EvaluationInputs
from learn_rank.evaluation.input.item_lookup import ItemLookup
from learn_rank.progress import note

_FEW_IDS = 20  # of so few, none may be listed by chance
_LOW_SHARE = 0.05  # logs of whose items nine in ten are new are usual


class SegmentCoverage(NamedTuple):
    """How many distinct ids the rows hold, and how many of them the file of segments does not."""

    entity: str  # 'user' or 'item'
    num_ids: int
    num_unlisted: int

    def require_any(self, where: Callable[[], str]) -> None:
        """InputError if the file lists none of many ids; where() says more of the two sides: ids of both."""
        if self.num_ids >= _FEW_IDS and self.num_unlisted >= self.num_ids:
            raise InputError(
                f"{self.entity}_segments: lists none of the {self.num_ids:,} {self.entity}s that are evaluated{where()}"
                f"; name the file of these {self.entity}s, with ids written alike, or leave {self.entity}_segments out"
            )

    @property
    def notes(self) -> list[str]:
        """A warning if it lists almost none."""
        num_listed = self.num_ids - self.num_unlisted
        if self.num_ids < _FEW_IDS or num_listed >= _LOW_SHARE * self.num_ids:
            return []
        return [
            f"Only {num_listed:,} of {self.num_ids:,} {self.entity}s are in the file of {self.entity} segments: is it "
            "the file of this log?"
        ]


def segment_coverage(state: State) -> Iterator[SegmentCoverage]:
    """Of users and items of a finished state; segments that are columns list every id."""
    yield SegmentCoverage("user", int(state.users_per_segment.sum()), state.unlisted_users)
    yield SegmentCoverage("item", int(state.items_per_segment.sum()), state.unlisted_items)


def check_coverage(inputs: EvaluationInputs, state: State) -> None:
    """InputError or a note if the segments list none, or almost none, of the ids; parts leave it to their merge."""
    if inputs.part is not None or inputs.is_own_log:
        return
    segments = {"user": inputs.users, "item": inputs.items}
    for coverage in segment_coverage(state):
        source = segments[coverage.entity].source
        if source is None or not source.num_rows:
            continue
        coverage.require_any(partial(inputs.example_ids, coverage.entity))
        for text in coverage.notes:
            note(text)


def count_items(lookup: ItemLookup, state: State, *, default: int) -> None:
    """Puts the distinct items that were looked up into the state; default: the segment of those not listed."""
    unlisted, num_segments = lookup.unlisted(), len(state.items_per_segment)
    state.items_per_segment[:] = lookup.listed_per_segment(num_segments)
    state.items_per_segment[default] += len(unlisted)
    state.item_sketches = [sketch(lookup.listed(code)) for code in range(num_segments)]
    state.item_sketches[default] = sketch(state.item_sketches[default], unlisted)
    state.item_sketches.append(sketch(unlisted))
    state.unlisted_items = len(unlisted)
