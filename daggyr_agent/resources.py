"""Resources in whole units by name: what this host offers, and what of it is in use.

`config` asks for the host's; `attempts` keeps a Ledger of what running attempts use. Nothing here knows what a unit is.
"""

from __future__ import annotations

from collections.abc import Mapping

from daggyr.host_resources import usable_cores, usable_memory_mb


def host_resources() -> dict[str, int]:
    """The host's `cores` and `memory_mb`, by the rules of daggyr.host_resources; the memory is missing where nothing tells it."""
    cores, memory = {"cores": usable_cores()}, usable_memory_mb()
    return cores if memory is None else {**cores, "memory_mb": memory}


class Ledger:
    """The resources in use. Never more are taken than there are. Each number of a demand is 1 or more."""

    def __init__(self, total: Mapping[str, int]) -> None:
        self.total = dict(total)
        self._free = dict(total)

    def shortage(self, demand: Mapping[str, int]) -> str | None:
        """Why `demand` can never be met here, as words for a user; None if it can."""
        missing = [
            f"{units} of {name} where this agent has {self.total.get(name, 0)}"
            for name, units in sorted(demand.items())
            if units > self.total.get(name, 0)
        ]
        return "the task needs " + " and ".join(missing) if missing else None

    def take(self, demand: Mapping[str, int]) -> bool:
        """Take `demand` if all of it is free; False, and nothing taken, otherwise."""
        free = self._free
        for name, units in demand.items():
            if units > free.get(name, 0):
                return False
        for name, units in demand.items():
            free[name] -= units
        return True

    def give_back(self, demand: Mapping[str, int]) -> None:
        """Return what `take` took."""
        for name, units in demand.items():
            self._free[name] += units
