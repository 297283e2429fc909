"""Another specification for an existing run: its tasks, and which of them the run has already.

A task is the same if its template's name and its expansion's values are the same. Its displayed name does not count, because it
changes when a parameter gets a second value, and neither does its number. A task that is not multiplied is also the same if its
name is, whatever values are in it. What a task does is its command, environment, working
directory and standard input; if one of them differs, it is changed. Templates are compared, expansions only where their templates
differ.

The driver calls this for an edit, and recovery calls it to repeat one. It only reads the run's graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from daggyr.substitution import Filling
from daggyr.v1.task_pb2 import TaskSpec, TaskTemplate
from daggyr_server.core.graph.carry import Carry
from daggyr_server.core.graph.graph import Edit, Graph
from daggyr_server.core.graph.segments import Binding, Details, ExpandedSegment, Keeping, PlainSegment
from daggyr_server.spec.counted import common, last_of_names
from daggyr_server.spec.document import RunSpec
from daggyr_server.spec.expand import expand
from daggyr_server.spec.faults import Fault, SpecificationError, quoted
from daggyr_server.spec.generated import expand_generated
from daggyr_server.spec.names import Positions
from daggyr_server.spec.policies import PoolLimits

_MAX_KEPT = 1_000
_MAX_KEPT_BYTES = 16 * 1024  # pairs of larger templates are compared anew each time


class Printed(NamedTuple):
    """The document that a generator of the run printed. Its tasks are part of the run."""

    revision: int  # the revision of the run that the tasks came with
    number: int  # the generator's present number
    document: bytes


Stretch = tuple[int, int, int]  # (first number, first number before the edit, how many)


@dataclass(frozen=True, slots=True)
class Edited:
    """An edit and the graph that it makes. Both can be looked at before the edit is done, for `--plan`."""

    edit: Edit
    graph: Graph
    adjusted: Sequence[Stretch]  # tasks that do the same with another policy or timeout


def expand_edit(
    spec: RunSpec,
    *,
    graph: Graph,
    printed: Sequence[Printed],
    pools: Mapping[str, PoolLimits] | None,
    default_pool: str,
    keep: Callable[[], Keeping] = list,
    limited: bool = True,
    warnings: list[str] | None = None,
) -> Edited:
    """The edit that gives the run of `graph` the specification `spec`.

    `printed` has the documents of the run's generators, in the order in which they came. The tasks of a generator that is
    unchanged stay in the run, and its document is in `Edit.kept`. `keep`, `limited` and `warnings` mean what they mean in
    `expand`. Raises SpecificationError with all faults, those included that tasks of generators have beside the new
    specification.
    """
    first = expand(
        spec,
        pools=pools,
        default_pool=default_pool,
        base=graph.size,
        policies=graph.policies,
        keep=keep,
        limited=limited,
        warnings=warnings,
    )
    made = Graph(policies=list(graph.policies), size=graph.size, live=graph.size)
    made.extend(first)
    comparison = _Comparison(graph)
    for segment in first.segments:
        comparison.add(segment)
    edit = Edit([first], comparison.carry)
    parameters = spec.run_parameters()
    for revision, number, document in printed:
        over = comparison.carry.forward(number)
        if over is None or not over[1]:
            continue
        try:
            addition = expand_generated(
                document,
                run_parameters=parameters,
                graph=made,
                generator=over[0],
                pools=pools,
                default_pool=default_pool,
                keep=keep,
                limited=limited,
            )
        except SpecificationError as error:
            raise _of_generator(made.task_id(over[0]), error) from None
        made.extend(addition)
        for segment in addition.segments:
            comparison.add(segment)
        edit.additions.append(addition)
        edit.kept += (revision,)
    earlier = [*graph.retired, *graph.segments]
    for addition in edit.additions:
        addition.after = last_of_names(earlier, addition.segments, comparison.carry)
    return Edited(edit, made, comparison.adjusted)


def terms(before: Graph, old: int, after: Graph, new: int) -> list[str]:
    """The keys, other than those of `differences`, in which a task differs: `pool`, `resources` and so on."""
    one, other = before.policy(old), after.policy(new)
    pairs: list[tuple[str, object, object]] = [
        ("pool", one.pool, other.pool),
        ("resources", one.needs, other.needs),
        ("timeout", _filled(before.details(old)).timeout, _filled(after.details(new)).timeout),
        ("priority", one.priority, other.priority),
        ("max_retries", one.max_retries, other.max_retries),
        ("retry_delay", one.retry_delay, other.retry_delay),
        ("is_generator", one.is_generator, other.is_generator),
    ]
    return [name for name, was, now in pairs if was != now]


def differences(before: Details, after: Details) -> list[str]:
    """The keys that make a task another one and that differ: `command`, `environment`, `working_directory`, `stdin`."""
    pairs = zip(_FIELDS, _does(_filled(before)), _does(_filled(after)), strict=True)
    return [name for name, old, new in pairs if old != new]


def _of_generator(name: str, error: SpecificationError) -> SpecificationError:
    """The error for tasks of an unchanged generator that do not fit beside the new specification; it names the generator."""
    hint = "change the generator, so that it runs again, or the new tasks"
    faults = [
        Fault(name, fault.place, f"what the generator {quoted(name)} printed is kept, and does not fit: {fault.message}", hint)
        for fault in error.faults
    ]
    return SpecificationError(faults, error.count)


class _Comparison:
    """Finds out which tasks of the new specification a graph has already, segment by segment, in the order of their numbers."""

    def __init__(self, graph: Graph) -> None:
        self.carry = Carry()
        self.adjusted: list[Stretch] = []
        self._graph = graph
        self._plain = {
            name: number
            for segment in graph.segments
            if isinstance(segment, PlainSegment)
            for number, name in enumerate(segment.names, segment.base)
        }
        self._expanded = {segment.name: segment for segment in graph.expanded()}
        self._kept: dict[tuple[bytes, bytes], bool] = {}
        self._positions = Positions()

    def add(self, segment: PlainSegment | ExpandedSegment) -> None:
        if isinstance(segment, PlainSegment):
            for number, name in enumerate(segment.names, segment.base):
                self._add_plain(segment, number, name)
            return
        before = self._expanded.get(segment.name)
        if before is not None and before.parameters == segment.parameters:
            self._add_expanded(segment, before)
        elif segment.name in self._plain:
            self._add_from_plain(segment, self._plain[segment.name])

    def _add_plain(self, segment: PlainSegment, number: int, name: str) -> None:
        old = self._plain.get(name)
        if old is not None:
            before = self._graph.segment_of(old)
            assert isinstance(before, PlainSegment)
            if before.binding(old) == segment.binding(number):
                details, now = before.details[old - before.base], segment.details[number - segment.base]
                same = self._equal(details, now)
                self.carry.add(number, old, 1, same=same)
                if same and (before.policies[old - before.base] != segment.policies[number - segment.base] or details != now):
                    self._adjust(number, old, 1)
            else:
                after = Details(segment.details[number - segment.base], (), ())
                self._carry_over(number, old, after, segment.policies[number - segment.base])
        elif name in self._expanded:
            expanded = self._expanded[name]
            index = _index(expanded, segment.binding(number), self._positions)
            if index is not None:
                old = expanded.first + index
                after = Details(segment.details[number - segment.base], (), ())
                self._carry_over(number, old, after, segment.policies[number - segment.base])

    def _add_from_plain(self, segment: ExpandedSegment, old: int) -> None:
        before = self._graph.segment_of(old)
        assert isinstance(before, PlainSegment)
        index = _index(segment, before.binding(old), self._positions)
        if index is not None:
            after = Details(segment.details, segment.parameters, segment.values_at(index))
            self._carry_over(segment.first + index, old, after, segment.policy)

    def _carry_over(self, number: int, old: int, after: Details, policy: int) -> None:
        """Note that a task goes over whose details have to be compared one by one."""
        before = self._graph.details(old)
        same = not differences(before, after)
        self.carry.add(number, old, 1, same=same)
        if same and (self._graph.policy_index(old) != policy or _filled(before).timeout != _filled(after).timeout):
            self._adjust(number, old, 1)

    def _add_expanded(self, segment: ExpandedSegment, before: ExpandedSegment) -> None:
        equal = self._equal(before.details, segment.details)
        fill, fill_before = _filling(segment.details, segment.parameters), _filling(before.details, before.parameters)
        timeouts = [TaskSpec.FromString(one.details).timeout for one in (before, segment)]
        adjusted = before.policy != segment.policy or timeouts[0] != timeouts[1]
        for index, old_index, count in common(segment, before):
            if equal:
                self.carry.add(segment.first + index, before.first + old_index, count, same=True)
                if before.policy != segment.policy or before.details != segment.details:
                    self._adjust(segment.first + index, before.first + old_index, count)
                continue
            for offset in range(count):
                values = segment.values_at(index + offset)
                same = _does(fill.spec(values)) == _does(fill_before.spec(values))
                self.carry.add(segment.first + index + offset, before.first + old_index + offset, 1, same=same)
                if same and adjusted:
                    self._adjust(segment.first + index + offset, before.first + old_index + offset, 1)

    def _adjust(self, number: int, old: int, count: int) -> None:
        if self.adjusted:
            last, last_old, length = self.adjusted[-1]
            if (last + length, last_old + length) == (number, old):
                self.adjusted[-1] = last, last_old, length + count
                return
        self.adjusted.append((number, old, count))

    def _equal(self, before: bytes, after: bytes) -> bool:
        """Whether tasks of two templates do the same when their parameters have the same values."""
        if before == after:
            return True
        found = self._kept.get((before, after))
        if found is None:
            found = _does(TaskSpec.FromString(before)) == _does(TaskSpec.FromString(after))
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            if len(before) + len(after) <= _MAX_KEPT_BYTES:
                self._kept[before, after] = found
        return found


def _index(segment: ExpandedSegment, binding: Binding, positions: Positions) -> int | None:
    """The index of the expansion whose parameters have the values of `binding`; None if there is none."""
    if tuple(name for name, _ in binding) != segment.parameters:
        return None
    index = 0
    for (_, value), choices, stride in zip(binding, segment.values, segment.strides, strict=True):
        position = positions(choices, value)
        if position is None:
            return None
        index += position * stride
    return index


_FIELDS = ("command", "environment", "working_directory", "stdin")


def _does(spec: TaskSpec) -> tuple[object, ...]:
    """The values that make a task another one if they differ, in the order of _FIELDS."""
    return (
        tuple(spec.command),
        dict(spec.environment),
        spec.working_directory,
        spec.stdin if spec.HasField("stdin") else None,
    )


def _filling(template: bytes, parameters: tuple[str, ...]) -> Filling:
    return Filling(TaskTemplate(spec=TaskSpec.FromString(template), parameters=parameters))


def _filled(details: Details) -> TaskSpec:
    return _filling(details.template, details.parameters).spec(details.values)
