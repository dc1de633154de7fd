"""Do the segments speak of these users and items? A file of other ids would put everybody into one segment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from learn_rank.errors import InputError
from learn_rank.evaluation.engine.sums import State

_FEW_IDS = 20  # of so few, none may be listed by chance
_LOW_SHARE = 0.05  # logs of whose items nine in ten are new are usual


class Matches(NamedTuple):
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


def matches_of(state: State) -> Iterator[Matches]:
    """Of users and items of a finished state; segments that are columns list every id."""
    yield Matches("user", int(state.users_per_segment.sum()), state.unlisted_users)
    yield Matches("item", int(state.items_per_segment.sum()), state.unlisted_items)
