"""Expands a run specification into the addition that makes its graph.

The driver calls `expand` for a submitted run, the CLI for `validate` and `expand`; `decode` asks for the faults that it
would find. The result is as large as the document, whatever the number of combinations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from daggyr_server.core.graph.graph import Addition, Graph
from daggyr_server.core.graph.segments import Keeping, PlainSegment, Policy
from daggyr_server.spec.assembly import Assembly
from daggyr_server.spec.document import RunSpec
from daggyr_server.spec.faults import Faults
from daggyr_server.spec.parameters import Scopes, check_values
from daggyr_server.spec.policies import Policies, PoolLimits
from daggyr_server.spec.sizes import check_parameter_names, check_tags
from daggyr_server.spec.templates import Templates
from daggyr_server.spec.warnings import Warnings

MANY_EDGES = 10_000  # are counted here, where there is time


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
    """What makes the graph of `spec`: for an empty Graph, with all its segments.

    `pools` are those that there are, with what they can ever give (None: nothing is known of pools); `default_pool` is for tasks
    of a specification that names none. For an edit, `base` is the first task's number, and `policies` are those that the run has:
    equal ones are used again. `keep` makes the list of what tasks execute. `limited`: sizes are (see sizes.py), as they are for
    all that was not accepted yet. What is valid and most likely not meant is put into `warnings`. Raises SpecificationError with
    all faults; then nothing was made.
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
    """Add what `expand` would find wrong with `spec`, of whose tasks in `unsound` not all could be read."""
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
    templates = Templates(scopes, policies, faults, limited, warnings)
    assembly = Assembly(spec, templates, base=base, unsound=unsound, keep=keep)
    assembly.resolve()
    assembly.check_names()
    assembly.check_cycles()
    return assembly, policies
