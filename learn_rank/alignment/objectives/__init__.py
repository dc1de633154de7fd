"""The objectives of alignment, one file each (options, sampling, loss), and the table in which they are registered."""

from __future__ import annotations

from dataclasses import fields

from learn_rank.alignment.objectives.all_action import AllAction
from learn_rank.alignment.objectives.catalogue import Catalogue
from learn_rank.alignment.objectives.in_batch import InBatch
from learn_rank.alignment.objectives.none import NoAlignment
from learn_rank.alignment.objectives.objective import Objective, ObjectiveOptions
from learn_rank.registry import look_up

__all__ = ["Objective", "ObjectiveOptions", "find_objective", "unread_options"]

_OBJECTIVES: dict[str, type[Objective]] = {
    "all_action": AllAction,
    "catalogue": Catalogue,
    "in_batch": InBatch,
    "none": NoAlignment,
}


def find_objective(name: str) -> type[Objective]:
    """The class that `align.objective` names: one of the table, or module:Class of the user's own.

    InputError: there is none.
    """
    return look_up(name, _OBJECTIVES, option="align.objective")


def unread_options(name: str) -> set[str]:
    """Options that belong to other objectives alone; of an objective of the user's own, nobody knows."""
    if name not in _OBJECTIVES:
        return set()
    read = {option.name for option in fields(_OBJECTIVES[name].options_type)}
    return {option.name for other in _OBJECTIVES.values() for option in fields(other.options_type)} - read
