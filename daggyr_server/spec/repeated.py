"""Keys that stand twice in one object of a JSON document.

RFC 8259 leaves their meaning open, and msgspec takes the last without a word. They are refused, because a task that silently
replaces another one of its name is lost work. For most documents `decode` proves by counting that there are none; this module
finds where they are, in a second pass over the document (some 1.5 s for a million tasks) that keeps no memory.
"""

from __future__ import annotations

import json
from typing import Any

_MAX_FOUND = 1_000

Path = tuple[str, ...]


def repeated_keys(document: str) -> list[tuple[Path, str]]:
    """The keys that stand more than once in one object, each with the keys (and `[index]` of lists) that lead to it.

    At most _MAX_FOUND are found. Raises json.JSONDecodeError for what is no JSON, RecursionError for a document that is nested
    too deeply.
    """
    reader = _Reader()
    # Numbers are not converted, because a number of a million digits would take minutes.
    found = json.loads(document, object_pairs_hook=reader.take, parse_int=_nothing, parse_float=_nothing)
    return _within(found)[:_MAX_FOUND]


class _Repeats(list[tuple[Path, str]]):
    """The repeated keys that were found inside an object. It takes the place of the object."""


class _Reader:
    """Takes each object of a document, after the objects inside it."""

    def __init__(self) -> None:
        self._found = False  # whether anything was found; before that, no object needs to be searched for results

    def take(self, pairs: list[tuple[str, Any]]) -> _Repeats | None:
        """Take an object's keys and values. The decoder puts the returned value in the object's place."""
        if len(dict(pairs)) != len(pairs):
            self._found = True
        elif not self._found:
            return None
        repeats = _Repeats()
        seen: set[str] = set()
        for key, value in pairs:
            if key in seen:
                repeats.append(((), key))
            seen.add(key)
            if value.__class__ is _Repeats or value.__class__ is list:
                repeats += [((key, *path), inner) for path, inner in _within(value)]
        del repeats[_MAX_FOUND:]
        return repeats or None


def _within(value: Any) -> list[tuple[Path, str]]:
    if isinstance(value, _Repeats):
        return value
    if isinstance(value, list):
        return [
            ((f"[{index}]", *path), key)
            for index, item in enumerate(value)
            if item.__class__ is _Repeats or item.__class__ is list
            for path, key in _within(item)
        ]
    return []


def _nothing(_: str) -> None:
    return None
