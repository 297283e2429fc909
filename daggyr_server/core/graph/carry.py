"""How the tasks of one specification of a run go over into those of the next: which number becomes which.

`daggyr_server.spec` makes a Carry when a run is edited; `edit.py` moves states along it, and history is read against it. Numbers
that go over side by side are one entry, so that a million expansions of an unchanged template cost no more than one task. Nothing
here decides which tasks are the same.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Carry:
    """Built by `add`, then only read. A number occurs once at most on each side."""

    __slots__ = ("_by_old", "_counts", "_news", "_olds", "_same")

    def __init__(self) -> None:
        self._news, self._olds, self._counts = array("I"), array("I"), array("I")
        self._same = bytearray()
        self._by_old: list[int] | None = None  # entries by their old numbers

    def add(self, new: int, old: int, count: int, *, same: bool) -> None:
        """Note that `count` tasks go over. `new` is above all numbers that were added before."""
        self._by_old = None
        if self._news:
            size = self._counts[-1]
            if self._news[-1] + size == new and self._olds[-1] + size == old and self._same[-1] == same:
                self._counts[-1] = size + count
                return
        self._news.append(new)
        self._olds.append(old)
        self._counts.append(count)
        self._same.append(same)

    @property
    def columns(self) -> tuple[array[int], array[int], array[int], bytearray]:
        """The entries as parallel columns: new, old, count, same."""
        return self._news, self._olds, self._counts, self._same

    def __iter__(self) -> Iterator[tuple[int, int, int, bool]]:
        """Entries (new, old, count, same), by their new numbers: `count` tasks with numbers from `old` on have numbers from `new`
        on. `same` says that they do what they did."""
        for new, old, count, same in zip(self._news, self._olds, self._counts, self._same, strict=True):
            yield new, old, count, bool(same)

    def __len__(self) -> int:
        """How many tasks go over."""
        return sum(self._counts)

    def back(self, new: int) -> int | None:
        """The number that a task had before; None for a task that was added."""
        index = bisect_right(self._news, new) - 1
        if index < 0 or new - self._news[index] >= self._counts[index]:
            return None
        return self._olds[index] + new - self._news[index]

    def since(self, start: int) -> Carry:
        """The entries whose new numbers are `start` or above."""
        found, index = Carry(), bisect_left(self._news, start)
        found._news, found._olds, found._counts = self._news[index:], self._olds[index:], self._counts[index:]
        found._same = self._same[index:]
        return found

    def gaps(self, start: int, beyond: int) -> Iterator[tuple[int, int]]:
        """The stretches (first, beyond the last) of new numbers from `start` to below `beyond` that no number goes over to."""
        index = max(bisect_right(self._news, start) - 1, 0)
        while start < beyond:
            first = min(self._news[index], beyond) if index < len(self._news) else beyond
            if start < first:
                yield start, first
            if index == len(self._news):
                return
            start = max(start, self._news[index] + self._counts[index])
            index += 1

    def forward(self, old: int) -> tuple[int, bool] | None:
        """The number that a task has from then on, and whether it does the same; None for a task that was taken away."""
        if self._by_old is None:
            self._by_old = sorted(range(len(self._olds)), key=self._olds.__getitem__)
        position = bisect_right(self._by_old, old, key=self._olds.__getitem__) - 1
        if position < 0:
            return None
        index = self._by_old[position]
        if old - self._olds[index] >= self._counts[index]:
            return None
        return self._news[index] + old - self._olds[index], bool(self._same[index])
