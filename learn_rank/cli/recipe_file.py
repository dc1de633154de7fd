"""A YAML file as text and nothing else: mappings, lists and strings, exactly as they are written.

No scalar is guessed to be a number, a date or a truth value, so that `user_id: 0`, `label: yes` and `item_id: 2024_05`
are what they say; the options' types decide later (cli.words). No tag makes an object, no interpolation is resolved.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from learn_rank.errors import InputError

Tree = None | str | list[Any] | dict[str, Any]
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 20
_MAX_NODES = 100_000  # with what an alias stands for counted each time it is used
_NULLS = ("", "~", "null", "Null", "NULL")
_PLAIN_TAGS = (None, "!", "tag:yaml.org,2002:str")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of libyaml is ten times as fast


def read_recipe(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    InputError with file and line: no such file, more than 1 MiB, not UTF-8, not YAML, no mapping, a key that stands
    twice, a tag, aliases or nesting without measure.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as stream:
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise InputError(f"{path}: more than 1 MiB, too large for a recipe")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not readable as YAML: byte {error.start} is not UTF-8; save the file as UTF-8")
    return parse_mapping(text, where=str(path))


def parse_mapping(text: str, *, where: str) -> dict[str, Any]:
    """The same of a text.

    >>> parse_mapping("{user_id: 0, label: yes, text: [title, '1e5'], where: null}", where="recipe")
    {'user_id': '0', 'label': 'yes', 'text': ['title', '1e5'], 'where': None}
    """
    try:
        tree = _Reader(text, where).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise InputError(f"{where}: not readable as YAML: {f'line {mark.line + 1}: ' if mark else ''}{problem}")
    if not isinstance(tree, dict):
        raise InputError(f"{where}: expected a mapping such as 'interactions: ...'")
    return tree


class _Reader:
    """Builds the tree from the parser's events, so that limits hold before anything has grown."""

    def __init__(self, text: str, where: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._where = where
        self._num_nodes = 0
        self._anchors: dict[str, tuple[Tree, int]] = {}  # with the nodes of each

    def document(self) -> Tree:
        tree: Tree = None
        num_documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                num_documents += 1
                if num_documents > 1:
                    self._refuse(event, "a second document begins; a recipe is one")
                tree = self._node(next(self._events), 0)
        return tree

    def _node(self, event: Any, depth: int) -> Tree:
        before = self._num_nodes
        self._count(event, 1)
        if depth > _MAX_DEPTH:
            self._refuse(event, f"nested more than {_MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                self._refuse(event, f"'*{event.anchor}' stands for nothing that was written before, or for itself")
            tree, size = self._anchors[event.anchor]
            self._count(event, size)
            return tree
        if event.tag not in _PLAIN_TAGS:
            self._refuse(event, f"tag '{event.tag}'; a recipe is plain text, without tags")
        if isinstance(event, yaml.ScalarEvent):
            tree = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            tree = []
            while not isinstance(element := next(self._events), yaml.SequenceEndEvent):
                tree.append(self._node(element, depth + 1))
        else:
            tree = {}
            while not isinstance(key_event := next(self._events), yaml.MappingEndEvent):
                key = self._key(key_event, tree)
                tree[key] = self._node(next(self._events), depth + 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = (tree, self._num_nodes - before)
        return tree

    def _scalar(self, event: Any) -> str | None:
        if "\0" in event.value:
            self._refuse(event, "a text with the character NUL")
        is_plain = event.tag is None and event.implicit[0]  # neither quoted nor a block
        return None if is_plain and event.value in _NULLS else str(event.value)

    def _key(self, event: Any, taken: dict[str, Any]) -> str:
        if not isinstance(event, yaml.ScalarEvent) or event.tag not in _PLAIN_TAGS or not event.value:
            self._refuse(event, "a key that is not a name")
        self._count(event, 1)
        if event.value in taken:
            self._refuse(event, f"key '{event.value}' stands there twice; leave one of them out")
        self._scalar(event)
        return str(event.value)

    def _count(self, event: Any, num_nodes: int) -> None:
        self._num_nodes += num_nodes
        if self._num_nodes > _MAX_NODES:
            self._refuse(event, f"more than {_MAX_NODES:,} entries, with what aliases repeat")

    def _refuse(self, event: Any, what: str) -> NoReturn:
        raise InputError(f"{self._where}: line {event.start_mark.line + 1}: {what}")
