"""What a database offers to those who read: run a statement by its name, give its rows.

`SqlTracker` reads through this interface alone; sqlite/readers.py and postgres/readers.py fill it. The statements stand by name
in each database's statements.sql, with the same columns and the same parameters, so that whoever asks need not know which one it
is. Readers never write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec

from daggyr_server.core.states import State
from daggyr_server.core.stored import RunFilter

Row = Any  # a tuple whose columns are those of its statement


def unwanted_states(wanted: RunFilter) -> list[int]:
    """The states that a run must not have: so, a state that is none is wanted."""
    return [int(state) for state in State if wanted.states and state not in wanted.states]


def tag_texts(wanted: RunFilter) -> list[str]:
    """What is found in the JSON of the tags that are wanted, because each tag is written there in one way only."""
    return [msgspec.json.encode({name: value}).decode()[1:-1] for name, value in wanted.tags.items()]


class Snapshot(Protocol):
    """One commit's state, as it is while the context lasts that gave it."""

    async def rows(self, statement: str, **parameters: object) -> list[Row]:
        """All rows of a statement."""

    def in_turns(self, statement: str, size: int, **parameters: object) -> AsyncIterator[list[Row]]:
        """All rows of a statement, at most `size` at a time; other work of the event loop has its turn in between."""


class Readers(ABC):
    """Connections that read. They work from the tracker's `open` until its `close`; before and after, all raise TrackerError.

    Errors of the database are raised as TrackerError too.
    """

    rows_a_turn: int  # that a large run is read by

    @abstractmethod
    async def rows(self, statement: str, **parameters: object) -> list[Row]:
        """All rows of a statement, as of the last commit."""

    @abstractmethod
    async def runs(self, before: int, lowest: int, limit: int, wanted: RunFilter) -> list[Row]:
        """The rows of at most `limit` runs with ids from `lowest` to below `before`, newest first.

        Those that are `wanted` are among them, and damaged ones of which nobody can tell. `lowest` counts only with a filter.

        The first row that takes their tags to MAX_ROWS_BYTES or above is the last. Each database has its own way not to read
        the others.
        """

    @abstractmethod
    def snapshot(self) -> AbstractAsyncContextManager[Snapshot]:
        """A view for several statements, or for large ones."""
