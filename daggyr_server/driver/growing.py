"""A run's graph, made again of what a tracker kept: the documents are expanded anew, step by step.

Expansion is deterministic, so that task numbers are what they were. Of a specification that an edit replaced, names, policies and
how its tasks went over are enough; where an edit left these beside its document (replaced.py), nothing is expanded. Only recovery
uses this, in a thread. Pure; nothing here reads a tracker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from daggyr_server.core.graph.graph import Addition, Edit, Graph, Replaced
from daggyr_server.core.graph.segments import Keeping
from daggyr_server.core.stored import Growth, StoredRun
from daggyr_server.driver.replaced import Unreadable, decoded
from daggyr_server.spec import Printed, RunSpec, decode_json, expand, expand_edit, expand_generated
from daggyr_server.spec.counted import last_of_names
from daggyr_server.trackers.base import DamagedRun


class _Period(NamedTuple):
    """The time in which a run had one specification."""

    edit: Growth | None  # that brought it; None for the specification that was submitted
    generated: list[Growth]
    replaced: bytes | None  # what is kept of it, if an edit has replaced it and has left this


class Grown:
    """Makes a graph again when it is made. `growths`, `parameters` and `printed` are then what `restored` takes."""

    def __init__(self, stored: StoredRun, keep: Callable[[], Keeping]) -> None:
        """`keep` makes the lists of what tasks execute. Raises SpecificationError, Unreadable and DamagedRun."""
        self.growths: list[Addition | Edit | Replaced] = []
        self.parameters: dict[str, tuple[str, ...]] = {}
        self.printed: dict[int, int] = {}  # revision -> the generator, by now, of the tasks that came then and are still there
        self._run_id = stored.row.run_id
        self._keep = keep
        self.graph = Graph()
        self._documents = {0: stored.document} | {growth.revision: growth.document for growth in stored.growths}
        known = False  # whether all is known of how the tasks of the period before go over
        for period in _periods(stored):
            self._live_through(period, period.edit.pool if period.edit is not None else stored.pool, known=known)
            known = period.replaced is not None

    def _live_through(self, period: _Period, pool: str, *, known: bool) -> None:
        graph, edit = self.graph, period.edit
        if edit is not None and not known:
            self._edit(edit, pool, whole=period.replaced is None)
        else:
            if edit is not None:
                self._carry_printed(edit)
            if period.replaced is None:
                self._begin(edit, pool)
        for growth in period.generated:
            self._generate(growth, pool, whole=period.replaced is None)
        if period.replaced is not None:
            replaced = decoded(period.replaced, graph.size)
            try:
                graph.skip(replaced)
            except ValueError as error:
                raise Unreadable(str(error)) from None
            self.growths.append(replaced)

    def _spec(self, revision: int, pool: str) -> RunSpec:
        spec = decode_json(self._documents[revision], limited=False)
        self.parameters = spec.run_parameters()
        return spec.with_overrides(pool=pool)

    def _begin(self, edit: Growth | None, pool: str) -> None:
        """Make the tasks of a specification; of the one before, if there was one, all is known."""
        graph = self.graph
        spec = self._spec(edit.revision if edit is not None else 0, pool)
        made = expand(spec, default_pool=pool, base=graph.size, policies=graph.policies, keep=self._keep, limited=False)
        if graph.edits:
            made.after = last_of_names(graph.retired, made.segments, graph.edits[-1][1])
        self._take(made)
        for revision, generator in list(self.printed.items()):
            self._take_printed(revision, generator, pool)

    def _edit(self, edit: Growth, pool: str, *, whole: bool) -> None:
        """Find out how the tasks that there are go over. If not `whole`, no more is needed of the new ones."""
        graph = self.graph
        printed = [
            Printed(revision, self.printed[revision], self._documents[revision])
            for revision in edit.kept
            if revision in self.printed
        ]
        made = expand_edit(
            self._spec(edit.revision, pool),
            graph=graph,
            printed=printed,
            pools=None,
            default_pool=pool,
            keep=self._keep,
            limited=False,
        ).edit
        self.printed = made.printed_after(self.printed)
        graph.retire(made.carry)
        if not whole:
            made = Edit([], made.carry, made.kept)
        for addition in made.additions:
            graph.extend(addition)
        self.growths.append(made)

    def _carry_printed(self, edit: Growth) -> None:
        """Give the generators whose tasks an edit kept the numbers that they have from then on."""
        _, carry = self.graph.edits[-1]
        self.printed = Edit([], carry, edit.kept).printed_after(self.printed)

    def _generate(self, growth: Growth, pool: str, *, whole: bool) -> None:
        assert growth.number is not None
        generator = self.graph.newest(growth.number)
        if generator is None:
            raise DamagedRun(self._run_id, "a generator of it was edited away before it ended")
        self.printed[growth.revision] = generator
        if whole:
            self._take_printed(growth.revision, generator, pool)

    def _take_printed(self, revision: int, generator: int, pool: str) -> None:
        """Take what a generator printed. One that printed no task has none in the run."""
        addition = self._expanded(revision, generator, pool)
        self._take(addition)
        if not addition.segments:
            del self.printed[revision]

    def _expanded(self, revision: int, generator: int, pool: str) -> Addition:
        return expand_generated(
            self._documents[revision],
            run_parameters=self.parameters,
            graph=self.graph,
            generator=generator,
            pools=None,
            default_pool=pool,
            keep=self._keep,
            limited=False,
        )

    def _take(self, addition: Addition) -> None:
        self.graph.extend(addition)
        self.growths.append(addition)


def _periods(stored: StoredRun) -> list[_Period]:
    periods: list[_Period] = []
    edit: Growth | None = None
    generated: list[Growth] = []
    for growth in stored.growths:
        if growth.number is not None:
            generated.append(growth)
            continue
        periods.append(_Period(edit, generated, stored.replaced.get(growth.revision)))
        edit, generated = growth, []
    return [*periods, _Period(edit, generated, None)]
