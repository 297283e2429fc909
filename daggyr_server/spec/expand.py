"""Expands a run specification into the addition that makes its graph.

The API calls `expand` for a submitted run, the driver for one that it restores, `edited` for an edit, and the CLI for `validate`
and `expand`; `decode` calls `find_faults`. The result is about as large as the document, whatever the number of combinations.
Nothing here changes a graph of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from daggyr_server.core.graph.graph import Addition, Graph
from daggyr_server.core.graph.segments import Keeping, PlainSegment, Policy
from daggyr_server.spec.assembly import Assembly
from daggyr_server.spec.defaults import Filler
from daggyr_server.spec.document import RunSpec
from daggyr_server.spec.faults import Faults
from daggyr_server.spec.parameters import Scopes, check_values
from daggyr_server.spec.policies import Policies, PoolLimits
from daggyr_server.spec.sizes import check_parameter_names, check_tags
from daggyr_server.spec.templates import Templates
from daggyr_server.spec.warnings import Warnings

MANY_EDGES = 10_000  # more are counted here, so that the driver's loop need not do it


def expand(
    spec: RunSpec,
    *,
    pools: Mapping[str, PoolLimits] | None = None,
    default_pool: str,
    base: int = 0,
    policies: Sequence[Policy] = (),
    keep: Callable[[], Keeping] = list,
    limited: bool = True,
    warnings: list[str] | None = None,
) -> Addition:
    """The addition that makes the graph of `spec` out of an empty Graph.

    `pools` are the pools that there are, with what each can ever give to a task; None means that nothing is known of pools.
    `default_pool` is for tasks of a specification that names no pool. For an edit, `base` is the first task's number, and
    `policies` are those of the run, of which equal ones are used again. `keep` makes the list in which the tasks' commands are
    kept. `limited` applies the limits of sizes.py, which hold for everything that was not accepted before. `warnings` takes
    sentences about what is valid and most likely not meant. Raises SpecificationError with all faults.
    """
    faults = Faults()
    odd = Warnings(spec.parameters or {}) if warnings is not None else None
    assembly, found = _assembled(spec, faults, pools, default_pool, (), base, policies, keep, limited, odd)
    faults.refuse_if_any()
    if warnings is not None and odd is not None:
        warnings += odd.sentences()
    addition = Addition(policies=found.added, segments=assembly.segments())
    if any(len(segment.child_numbers) > MANY_EDGES for segment in addition.segments if isinstance(segment, PlainSegment)):
        graph = Graph(size=base, live=base)
        graph.extend(addition)
        addition.degrees = graph.indegrees(base)
    return addition


def find_faults(
    spec: RunSpec, faults: Faults, *, unsound: Collection[str], pools: Mapping[str, PoolLimits] | None, default_pool: str
) -> None:
    """Add the faults that `expand` would find in `spec`. `unsound` names the tasks that could not be read completely."""
    _assembled(spec, faults, pools, default_pool, unsound)


def _assembled(
    spec: RunSpec,
    faults: Faults,
    pools: Mapping[str, PoolLimits] | None,
    default_pool: str,
    unsound: Collection[str],
    base: int = 0,
    known: Sequence[Policy] = (),
    keep: Callable[[], Keeping] = list,
    limited: bool = True,
    warnings: Warnings | None = None,
) -> tuple[Assembly, Policies]:
    if limited:
        check_tags(spec.tags or {}, faults)
        if not check_parameter_names(spec.parameters or {}, "parameters", faults):
            faults.refuse_if_any()
    scopes = Scopes(spec.parameters or {})
    check_values(scopes.run, "parameters", faults)
    policies = Policies(known, spec.pool or default_pool, pools, limited=limited)
    policies.check_default(faults, given=bool(spec.pool))
    filler = Filler.of(spec.defaults)
    if filler is not None and limited:
        filler.check_size(len(spec.tasks), faults)
        faults.refuse_if_any()
    templates = Templates(scopes, policies, faults, limited, warnings, filler)
    assembly = Assembly(spec, templates, base=base, unsound=unsound, keep=keep)
    assembly.resolve()
    assembly.check_names()
    assembly.check_cycles()
    return assembly, policies
