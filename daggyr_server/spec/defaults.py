"""Puts what a run gives to all of its tasks into a task's definition, and makes a command of a script.

`templates` calls this for each task, with a definition that was decoded for it alone: it is changed in place, so that everything
behind works with one form of a task. `expand` and `generated` make the Filler. Nothing here decides what is valid.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from daggyr_server.spec.document import DefaultDetails, Defaults, Details, TaskDefinition
from daggyr_server.spec.faults import Faults, at
from daggyr_server.spec.sizes import MAX_DEFAULTS_BYTES

SHELL = ("/bin/sh", "-eu")
_MERGED = ("environment", "resources")  # these are merged key by key


def as_command(details: Details) -> None:
    """Set the command that runs the script of `details`."""
    assert isinstance(details.script, str)
    details.command = [*(details.shell or SHELL), "-c", details.script]


class Filler:
    """Fills in the defaults of one run."""

    def __init__(self, defaults: Defaults) -> None:
        self._keys = _given(defaults, but=("details",))
        details = defaults.details or DefaultDetails()
        self._details = _given(details, but=_MERGED)
        self._merged = _given(details, but=tuple(self._details))
        self._resources = {at("details.resources", name): name for name in self._merged.get("resources", ())}
        self._own: tuple[Any, Any] = UNSET, UNSET
        self._told: set[tuple[str, str]] = set()
        self.size = len(msgspec.json.encode(details))

    @classmethod
    def of(cls, defaults: Defaults | msgspec.UnsetType) -> Filler | None:
        """The filler of `defaults`; None if there are none."""
        return cls(defaults) if isinstance(defaults, Defaults) else None

    def fill(self, definition: TaskDefinition) -> None:
        """Give `definition` what it does not have itself."""
        details = definition.details
        self._own = definition.pool, details.resources
        for key, value in self._keys.items():
            if getattr(definition, key) is UNSET:
                setattr(definition, key, value)
        for key, value in self._details.items():
            if getattr(details, key) is UNSET:
                setattr(details, key, value)
        for key, value in self._merged.items():
            own = getattr(details, key)
            setattr(details, key, {**value, **own} if own else value)

    def gave(self, place: str) -> bool:
        """Whether the value at `place` of the definition that was filled last came from the defaults."""
        pool, resources = self._own
        if place == "pool":
            return not pool
        if place == "details.resources":  # there are too many
            return not resources
        return place in self._resources and self._resources[place] not in (resources or ())

    def is_new(self, place: str, message: str) -> bool:
        """Whether a fault of the defaults is asked about for the first time, so that it is told once and not for each task."""
        known = (place, message) in self._told
        self._told.add((place, message))
        return not known

    def check_size(self, tasks: int, faults: Faults) -> None:
        """Add a fault if the defaults would make the details of `tasks` tasks far larger than the document."""
        if self.size * tasks > MAX_DEFAULTS_BYTES:
            message = f"the details take {self.size:,} bytes in each of {tasks:,} tasks"
            message += f"; together they take at most {MAX_DEFAULTS_BYTES:,}"
            faults.add("defaults.details", message, "put the text into a file, and its name into the environment")


def _given(keys: msgspec.Struct, *, but: tuple[str, ...]) -> dict[str, Any]:
    found = msgspec.structs.asdict(keys)
    return {key: value for key, value in found.items() if value is not UNSET and key not in but}
