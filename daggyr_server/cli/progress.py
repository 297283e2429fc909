"""Shows a run on standard error while it goes on, in plain lines. `live` has the bar for terminals.

`follow` gives a `View` what it learns, and the view decides what is worth showing and when. A view only prints: it asks the
server nothing.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from daggyr.v1.run_pb2 import RunSummary
from daggyr_server.cli import names, words
from daggyr_server.cli.stdout import notice

TICK = 0.25  # seconds between two calls of View.tick
_LINE_INTERVAL = 5.0  # seconds


class View(ABC):
    """Shows a run while it is entered as a context manager."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    @abstractmethod
    def say(self, text: str) -> None:
        """Print a line that stays."""

    @abstractmethod
    def update(self, run: RunSummary, running: Sequence[str]) -> None:
        """Take the run as it is now, and the names of some running tasks."""

    @abstractmethod
    def tick(self) -> None:
        """Show what is due. `follow` calls this a few times a second, whether anything has changed or not."""


class PlainView(View):
    """Prints lines for a file, a pipe or a log: one on progress every few seconds at most, and only if something has changed."""

    def __init__(self, say: Callable[[str], None] = notice, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._told_at = clock()
        self._told = self._latest = ""

    def say(self, text: str) -> None:
        self._say(text)

    def update(self, run: RunSummary, running: Sequence[str]) -> None:
        self._latest = (
            f"run {run.run_id} {names.state(run.state)}: "
            f"{words.ended(run):,} of {words.plural(words.total(run), 'task')} ended ({words.counts(run)})"
        )
        # The first update brings nothing new, because `follow` has printed it.
        self._told = self._told or self._latest

    def tick(self) -> None:
        if self._latest != self._told and self._clock() - self._told_at >= _LINE_INTERVAL:
            self._say(self._latest)
            self._told, self._told_at = self._latest, self._clock()


def closing(run: RunSummary) -> str:
    """The last line on a run, such as `run 1 COMPLETED in 1.2 s: 7 COMPLETED`."""
    state = names.state(run.state)
    return f"run {run.run_id} {state} in {words.took(run)}: {words.counts(run)}"
