"""What a scorer is asked: one user, the candidates, and what the caller knows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

History = Sequence[Any] | Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Request:
    """One user and N candidates.

    user_id: None for a user without one. item_ids: [N], a list, numpy or pyarrow array of ids as the log has them.
    time: unix milliseconds; LEARN's snapshots are those strictly before it, the newest by default.
    context: raw values of the log's own features, such as {"tab": 1}. user, items: raw values in place of what the
    folder knows, by feature and by item id and feature: {"age": 31}, {17: {"genres": "drama|war"}}. A name that a
    sparse and a dense feature share sets both.
    history: what the user did, oldest first, for a ranker that reads sequences: item ids, or values of the sequence's
    feature where the log carries them as a list; by name of the sequence, where there are several.

    A user, item or value that is not known, and a feature that is not given, is what it is in prepared rows: the
    unknown row of its table, a filled number, a missing vector.
    """

    user_id: int | str | None
    item_ids: Any
    _: KW_ONLY
    time: int | None = None
    context: Mapping[str, Any] | None = None
    user: Mapping[str, Any] | None = None
    items: Mapping[Any, Mapping[str, Any]] | None = None
    history: History = ()

    @staticmethod
    def of(user_id: int | str | Request | None, item_ids: Any = None, **details: Any) -> Request:
        """The request that the fields make, or the one that came in place of the user id.

        TypeError: no item_ids, a field that no request has, or any field beside a whole request.
        """
        if isinstance(user_id, Request):
            if item_ids is not None or details:
                raise TypeError("a Request and further fields; change the request by dataclasses.replace")
            return user_id
        if item_ids is None:
            raise TypeError("no item_ids; give the ids of the candidates")
        return Request(user_id, item_ids, **details)
