"""The live view of a run on a terminal: a bar, the tasks by state, the rate, the time, and some tasks that run.

`follow.open_view` makes it, and `follow` calls it a few times a second, so that it needs no thread. Lines that stay are printed
above it. Like every view it asks the server nothing.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import IO, Self, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from daggyr.v1.run_pb2 import RunSummary
from daggyr_server.cli import names, words
from daggyr_server.cli.progress import View

_STYLES = {"QUEUED": "dim", "RUNNING": "cyan", "COMPLETED": "green", "ERRORED": "red", "KILLED": "yellow"}
_SHOWN_NAMES = 8
_RATE_SECONDS = 10.0


class LiveView(View):
    """Three lines at the bottom of the terminal. Messages are printed above them."""

    def __init__(self) -> None:
        console = Console(
            file=cast("IO[str]", _Screen()), force_terminal=True, no_color=bool(os.environ.get("NO_COLOR")), highlight=False
        )
        self._bar = _Bar(console)
        self._task = self._bar.add_task("", total=None, rate="", elapsed="")
        self._ended: deque[tuple[float, int]] = deque(maxlen=256)
        self._run: RunSummary | None = None
        self._came = 0.0  # when it came, by a clock that nobody sets

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.running = ()
        self._show()
        self._bar.stop()

    def say(self, text: str) -> None:
        self._bar.console.print(Text(text), soft_wrap=True)

    def update(self, run: RunSummary, running: Sequence[str]) -> None:
        self._run = run
        self._bar.run = run
        self._bar.running = running
        now = self._came = time.monotonic()
        self._ended.append((now, words.ended(run)))
        while len(self._ended) > 2 and now - self._ended[0][0] > _RATE_SECONDS:
            self._ended.popleft()

    def tick(self) -> None:
        self._show()

    def _show(self) -> None:
        if self._run is not None:
            self._bar.update(
                self._task,
                description=f"run {self._run.run_id}",
                total=words.total(self._run),
                completed=words.ended(self._run),
                rate=self._rate(),
                elapsed=words.took(self._run, time.monotonic() - self._came),
            )
        self._bar.refresh()

    def _rate(self) -> str:
        (since, before), (_, after) = self._ended[0], self._ended[-1]
        passed = time.monotonic() - since
        return f"{(after - before) / passed:,.1f}/s" if after > before and passed > 0.5 else ""


class _Screen(io.TextIOBase):
    """Standard error. When it cannot be written any more, text is dropped, because a run goes on after its terminal is closed."""

    def __init__(self) -> None:
        self._stream = sys.stderr  # kept, because rich replaces sys.stderr while the bar is shown
        self._is_there = True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._is_there:
            try:
                self._stream.write(text)
            except OSError:
                self._is_there = False
        return len(text)

    def flush(self) -> None:
        if self._is_there:
            try:
                self._stream.flush()
            except OSError:
                self._is_there = False


class _Bar(Progress):
    """rich's bar with two lines below it: the tasks by state, and some of the running tasks."""

    def __init__(self, console: Console) -> None:
        self.run: RunSummary | None = None
        self.running: Sequence[str] = ()
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            TextColumn("{task.fields[rate]}", style="dim"),
            TextColumn("{task.fields[elapsed]}"),
            console=console,
            auto_refresh=False,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.run is None:
            return
        yield self.make_tasks_table(self.tasks)
        line = Text(no_wrap=True, overflow="ellipsis")
        state = names.state(self.run.state)
        line.append(state, _STYLES.get(state, ""))
        line.append("  ")
        for index, (name, count) in enumerate(words.command_states(self.run).items()):
            line.append(", " if index else "").append(f"{count:,} {name}", _STYLES[name])
        yield line
        if self.running:
            shown = ", ".join(map(words.printable, self.running[:_SHOWN_NAMES]))
            yield Text(f"running: {shown}", style="dim", no_wrap=True, overflow="ellipsis")
