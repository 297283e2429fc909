"""Makes an addition to a run's graph of what a generator printed.

The tasks are expanded with the run's parameters, as those of a specification are. Only what lies outside of the document differs
(`existing`): parents may be any task of the run, children only descendants of the generator, tasks without parents
get the generator, tasks without children get the generator's children. The driver calls this when a generator has succeeded,
and extends the graph itself, in one commit with the generator's completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from daggyr_server.core.graph.graph import Addition, Graph
from daggyr_server.core.graph.segments import Keeping, PlainSegment
from daggyr_server.spec.assembly import Assembly
from daggyr_server.spec.counted import last_of_names
from daggyr_server.spec.decode import decode_tasks
from daggyr_server.spec.defaults import Filler
from daggyr_server.spec.document import RunParameters, RunSpec
from daggyr_server.spec.existing import Existing
from daggyr_server.spec.faults import Faults
from daggyr_server.spec.parameters import Scopes
from daggyr_server.spec.policies import Policies, PoolLimits
from daggyr_server.spec.templates import Templates


def expand_generated(
    document: bytes | bytearray,
    *,
    run_parameters: Mapping[str, Sequence[str]],
    graph: Graph,
    generator: int,
    pools: Mapping[str, PoolLimits] | None,
    default_pool: str,
    keep: Callable[[], Keeping] = list,
    limited: bool = True,
) -> Addition:
    """The tasks in `document`, a JSON object of task definitions, as an addition to `graph` as it is now.

    They get the defaults that `run_parameters` has with it. `generator` is the number of the task that printed the document, and
    `default_pool` is for tasks that name no pool. `keep` and `limited` mean what they mean in `expand`. Policies that the graph
    has already are used again. Raises SpecificationError with all faults. `graph` is never changed.
    """
    tasks = decode_tasks(document, limited=limited)
    if not tasks:
        return Addition()
    faults = Faults()
    policies = Policies(graph.policies, default_pool, pools, limited=limited)
    policies.check_default(faults, given=False)
    filler = Filler.of(run_parameters.defaults) if isinstance(run_parameters, RunParameters) else None
    if filler is not None and limited:
        filler.check_size(len(tasks), faults)
        faults.refuse_if_any()
    existing = Existing(graph, generator, list(tasks), faults)
    assembly = Assembly(
        RunSpec(tasks=tasks),
        Templates(Scopes(run_parameters), policies, faults, limited, filler=filler),
        base=graph.size,
        root="",
        outside=existing,
        keep=keep,
    )
    assembly.resolve()
    assembly.check_names()
    existing.check_names(assembly)
    existing.connect(assembly)
    assembly.check_cycles()
    if not faults.count:
        existing.check_cycles(assembly)
    faults.refuse_if_any()
    segments = assembly.segments(existing.children)
    after = last_of_names(graph.retired, segments)
    addition = Addition(policies=policies.added, segments=segments, edges=existing.edges, after=after)
    if all(isinstance(segment, PlainSegment) for segment in segments):  # to count others' parents takes no time
        alone = Graph(size=graph.size, live=graph.size)
        alone.extend(addition)
        addition.degrees = alone.indegrees(graph.size)
    return addition
