"""What is wrong with a specification: faults, how they are collected, and the error that carries them.

Each check in this package adds to one `Faults`, so that a person reads all faults of a document together; `SpecificationError` is
the only error that the package raises for a fault of the input. Texts of the document are shown on one line, cut where they are
long, with control characters escaped. Nothing here knows the format.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

MAX_FAULTS = 100
_MAX_SHOWN = 100
_MAX_TEXT = 1_000
_MAX_CANDIDATES = 5_000


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. `str()` is one line.

    `task` is None for a fault of the run. `place` is where it is in the document (`tasks.load.details.timeout`), `message` says
    what is wrong, and `hint` says what to do about it, if that is known.
    """

    task: str | None
    place: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        line = f"{self.place}: {self.message}" if self.place else self.message
        return f"{line}; {self.hint}" if self.hint else line


class SpecificationError(Exception):
    """A specification that is refused as a whole.

    `faults` has the first MAX_FAULTS in the order in which they were found, and `count` is how many there are. `str()` has a line
    for each of `faults`, and a last one that says how many were left out.
    """

    def __init__(self, faults: Collection[Fault], count: int | None = None) -> None:
        self.faults = tuple(faults)
        self.count = len(self.faults) if count is None else count
        super().__init__(self.text())

    def text(self, max_bytes: int | None = None) -> str:
        """The faults, one a line, in at most `max_bytes` bytes of UTF-8, which must be 100 or more.

        The API passes a limit, because gRPC's metadata, which carries a status message, holds 8 KiB.
        """
        lines = [str(fault) for fault in self.faults]
        if max_bytes is not None:
            room, fitting = max_bytes - 40, 0
            for line in lines:
                room -= len(line.encode()) + 1
                if room < 0:
                    break
                fitting += 1
            lines = lines[:fitting]
        left_out = self.count - len(lines)
        if left_out:
            lines.append(f"and {left_out:,} more" if lines else f"{left_out:,} faults, too long to be told here")
        return "\n".join(lines)


class Faults:
    """Takes faults as they are found. It keeps the first MAX_FAULTS, cuts long ones, and counts all."""

    def __init__(self) -> None:
        self.kept: list[Fault] = []
        self.count = 0

    def add(self, place: str, message: str, hint: str | Callable[[], str] = "", *, task: str | None = None) -> None:
        """Take a fault. A hint that takes time to find is given as a function, which is called only if the fault is kept."""
        self.count += 1
        if self.count <= MAX_FAULTS:
            hint = hint if isinstance(hint, str) else hint()
            self.kept.append(Fault(task, _cut(place), _cut(message), _cut(hint)))

    def refuse_if_any(self) -> None:
        """Raise SpecificationError if there is any fault."""
        if self.count:
            raise SpecificationError(self.kept, self.count)


def _cut(text: str) -> str:
    """`text`, cut at its end if it is far longer than anybody reads. Only texts that did not go through `shown` are so long."""
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def shown(text: str) -> str:
    """`text` as a person can read it: on one line, printable, and cut in the middle if it is long."""
    if len(text) > _MAX_SHOWN:
        text = f"{text[: _MAX_SHOWN // 2]}...{text[-_MAX_SHOWN // 4 :]}"
    return text if text.isprintable() else json.dumps(text)[1:-1]


def quoted(text: str) -> str:
    """`text` in quotes, as a name in a sentence."""
    return f"`{shown(text)}`"


def at(place: str, key: str) -> str:
    """The place of a key inside the object at `place`, which is empty for the document itself."""
    key = shown(key) or '""'
    return f"{place}.{key}" if place else key


def listed(texts: Collection[str], most: int = 5) -> str:
    """The first `most` of `texts` as names in a sentence, and how many more there are."""
    names = [quoted(text) for text, _ in zip(texts, range(most), strict=False)]
    if len(texts) > most:
        names.append(f"{len(texts) - most:,} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def nearest(name: str, known: Collection[str]) -> str:
    """The hint that names the one of `known` that is spelt nearly like `name`.

    It is empty if there is none, or if `known` is large.
    """
    if len(known) > _MAX_CANDIDATES or len(name) > _MAX_SHOWN:
        return ""
    alike = [other for other in known if abs(len(other) - len(name)) <= 3][:500]
    found = difflib.get_close_matches(name, alike, n=1)
    return f"did you mean {quoted(found[0])}?" if found else ""
