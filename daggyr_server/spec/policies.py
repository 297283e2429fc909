"""How tasks are scheduled and what they may use: definitions become the few distinct policies of a run.

Most of a million tasks ask for the same. So what follows from a definition's pool, resources, retries and timeout is worked out
once for each combination of them, with its part of the contract's TaskSpec. Pools are checked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from daggyr.v1.task_pb2 import TaskSpec
from daggyr_server.core.graph.segments import Policy
from daggyr_server.spec.document import TaskDefinition
from daggyr_server.spec.faults import Faults, at, listed, nearest, quoted, shown
from daggyr_server.spec.quantities import megabytes, seconds, unit_hint
from daggyr_server.spec.sizes import MAX_RESOURCES, name_too_long

GENERATOR_STDOUT_BYTES = 64 * 1024 * 1024
_MAX_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What a pool can ever give to one task.

    `largest` has the units of each resource on the host that has most of it, and a resource that is missing in it is on no host.
    It is None if hosts of any size may come (agents, Slurm). `setting` tells people what to change, such as "`workers` of
    [pools.default]". `sets` is the only resource that this setting gives, or None if it gives all.
    """

    largest: Mapping[str, int] | None = None
    setting: str = ""
    sets: str | None = None


@dataclass(frozen=True, slots=True)
class Treatment:
    """What follows from a definition's pool, resources and limits.

    `policy` is the index of its policy, and `spec` is the end of its serialised TaskSpec. A fault is (place inside the
    definition, message, hint).
    """

    policy: int
    spec: bytes
    faults: Sequence[tuple[str, str, str]] = ()


@dataclass(slots=True)
class Policies:
    """The policies of a run. Each gets its number when the first task asks for it."""

    known: Sequence[Policy]  # the policies that the run has already
    default_pool: str
    pools: Mapping[str, PoolLimits] | None
    added: list[Policy] = field(default_factory=list)
    limited: bool = True  # whether the limits of sizes.py hold for names and resources
    _index: dict[Policy, int] = field(default_factory=dict)
    _treatments: dict[object, Treatment] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, policy in enumerate(self.known):
            self._index.setdefault(policy, index)

    def check_default(self, faults: Faults, *, given: bool) -> None:
        """Add a fault if there is no such pool as the default pool. `given` says that the document names it."""
        long = name_too_long("pool", self.default_pool) if self.limited else None
        if long:
            faults.add("pool", long)
        unknown = self._unknown(self.default_pool)
        if unknown:
            hint = "" if given else "the specification names no pool, so this is the default one"
            faults.add("pool", unknown[1], hint or unknown[2])

    def treatment(self, definition: TaskDefinition) -> Treatment:
        """What follows from `definition`. Its policy is added if it is new."""
        resources = definition.details.resources
        key = (
            definition.pool,
            tuple(resources.items()) if resources else (),
            definition.details.timeout,
            definition.is_generator,
            definition.max_retries,
            definition.retry_delay,
            definition.priority,
        )
        found = self._treatments.get(key)
        if found is None:
            if len(self._treatments) >= _MAX_KEPT:
                self._treatments.clear()
            found = self._treatments[key] = self._treat(definition)
        return found

    def _treat(self, definition: TaskDefinition) -> Treatment:
        asked = definition.details.resources or {}
        wrong = list(_united(asked))
        whole = {name: megabytes(units) for name, units in asked.items()} if not wrong else {}
        resources = {"cores": 1, **whole}
        timeout_seconds = seconds(definition.details.timeout or 0.0)
        policy = Policy(
            pool=definition.pool or self.default_pool,
            needs=tuple(sorted((name, units) for name, units in resources.items() if units)),
            priority=definition.priority or 0,
            max_retries=definition.max_retries or 0,
            retry_delay=seconds(definition.retry_delay or 0.0),
            is_generator=bool(definition.is_generator),
            timeout=timeout_seconds,
        )
        index = self._index.get(policy)
        if index is None:
            index = self._index[policy] = len(self.known) + len(self.added)
            self.added.append(policy)
        timeout = None
        if timeout_seconds:
            timeout = Duration()
            timeout.FromNanoseconds(round(timeout_seconds * 1e9))
        spec = TaskSpec(
            timeout=timeout,
            resources=resources,
            whole_stdout_bytes=GENERATOR_STDOUT_BYTES if policy.is_generator else 0,
        )
        wrong += [*(self._large(definition) if self.limited else ()), *self._faults(policy, definition)]
        return Treatment(index, spec.SerializeToString(deterministic=True), tuple(wrong))

    def _large(self, definition: TaskDefinition) -> Iterator[tuple[str, str, str]]:
        """The faults of names and numbers of resources that are too large for the messages of a run and of its tasks."""
        long = name_too_long("pool", definition.pool) if definition.pool else None
        if long:
            yield "pool", long, ""
        resources = definition.details.resources or {}
        for name in resources:
            long = name_too_long("resource", name)
            if long:
                yield at("details.resources", name), long, ""
        if len(resources) > MAX_RESOURCES:
            yield "details.resources", f"the task has {len(resources):,} resources; it has at most {MAX_RESOURCES}", ""

    def _faults(self, policy: Policy, definition: TaskDefinition) -> list[tuple[str, str, str]]:
        if self.pools is None:
            return []
        unknown = self._unknown(policy.pool)
        if unknown:
            return [unknown] if definition.pool else []
        limits = self.pools[policy.pool]
        if limits.largest is None:
            return []
        faults = []
        for name, units in policy.needs:
            most = limits.largest.get(name, 0)
            if units > most:
                has = f"has {most:,} at most" if most else "has none"
                message = f"{units:,} of {quoted(name)} can never be had: a host of the pool {quoted(policy.pool)} {has}"
                faults.append((at("details.resources", name), message, _other_limit(limits, name, units)))
        return faults

    def _unknown(self, pool: str) -> tuple[str, str, str] | None:
        if self.pools is None or pool in self.pools:
            return None
        known = sorted(self.pools)
        hint = nearest(pool, known) or (f"the pools are {listed(known)}" if known else "")
        return "pool", f"there is no pool {quoted(pool)}", hint


def _united(resources: Mapping[str, int | str]) -> Iterator[tuple[str, str, str]]:
    """The faults of resources with a unit that have none."""
    for name, units in resources.items():
        if isinstance(units, str) and name != "memory_mb":
            message = f'a whole number of units is needed, the text "{units}" was given'
            yield at("details.resources", name), message, unit_hint(name)


def _other_limit(limits: PoolLimits, name: str, units: int) -> str:
    """The hint for a task that needs more of a resource than the pool ever has."""
    if limits.setting and limits.sets in (None, name):
        return f"change {limits.setting}, or ask for less"
    if limits.largest is not None and name in limits.largest:
        return "ask for less, or choose another pool"
    return f"choose a pool of agents that have it (daggyr-agent --resource {shown(name)}={units}), or leave it out"
