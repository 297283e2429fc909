"""The commands `validate` and `expand`, which look at a specification in this process. They never call a server."""

from __future__ import annotations

from collections.abc import Iterator

from daggyr.substitution import Filling
from daggyr.v1.run_pb2 import Task, TaskSummary, TaskType
from daggyr.v1.task_pb2 import TaskSpec, TaskTemplate
from daggyr_server.cli import shapes, stdout, tables, words
from daggyr_server.cli.document import json_document, name_of, spec_argument
from daggyr_server.cli.errors import SpecRefused
from daggyr_server.cli.options import Settings, command, settings_object
from daggyr_server.cli.parameters import Given, param_option
from daggyr_server.core.graph.graph import Graph
from daggyr_server.core.graph.segments import ExpandedSegment, Kind
from daggyr_server.spec import SpecificationError, decode_json
from daggyr_server.spec import expand as expand_spec

_PAGE = 1000
_NAMES = 1000  # names of parents or children of a task, as many as the server's answers have


@command("validate", example="daggyr validate flights.yaml")
@spec_argument
@param_option
@settings_object
def validate(settings: Settings, spec: str, params: Given) -> int:
    """Check SPEC without a server and without running anything; all faults are told together.

    Pools are not checked: the server knows them.
    """
    warnings: list[str] = []
    try:
        graph = _graph(spec, params, warnings)
    except SpecRefused as refused:
        if settings.json:
            stdout.document({"valid": False, "task_count": 0, "faults": refused.faults, "warnings": []})
        raise
    if settings.json:
        stdout.document({"valid": True, "task_count": graph.size, "faults": [], "warnings": warnings})
    else:
        stdout.line(f"{name_of(spec)} is valid: {words.plural(_commands(graph), 'task')}")
    return 0


@command("expand", example="daggyr expand flights.yaml")
@spec_argument
@param_option
@settings_object
def expand(settings: Settings, spec: str, params: Given) -> int:
    """Show the tasks that SPEC becomes, without a server and without running anything."""
    pages = _pages(_graph(spec, params, []))
    if settings.json:
        listing = stdout.JsonList()
        for page in pages:
            listing.page(map(shapes.expanded_task, page))
        listing.end()
        return 0
    columns = tables.expanded_columns()
    for page in pages:
        columns.page(map(tables.expanded_row, page))
    return 0


def _graph(spec: str, params: Given, warnings: list[str]) -> Graph:
    """The graph of `spec`. This prints its warnings, and adds them to `warnings`.

    Raises SpecRefused, or CommandError if `spec` cannot be read.
    """
    with json_document(spec, params) as document:
        try:
            addition = expand_spec(decode_json(document.read()), default_pool="default", warnings=warnings)
        except SpecificationError as error:
            raise SpecRefused(name_of(spec), str(error)) from None
    for warning in warnings:
        stdout.warn(warning)
    graph = Graph()
    graph.extend(addition)
    return graph


def _commands(graph: Graph) -> int:
    """How many tasks run commands: all but the heads and tails of expanded tasks."""
    return graph.size - 2 * sum(isinstance(segment, ExpandedSegment) for segment in graph.segments)


def _pages(graph: Graph) -> Iterator[list[Task]]:
    for start in range(0, graph.size, _PAGE):
        yield [_task(graph, number) for number in range(start, min(start + _PAGE, graph.size))]


def _task(graph: Graph, number: int) -> Task:
    """The task as a server would send it before any attempt."""
    parents, children = graph.parents(number), graph.children(number)
    task = Task(
        summary=TaskSummary(task_id=graph.task_id(number), task_number=number, task_type=TaskType.TASK_TYPE_STRUCTURAL),
        parents=[graph.task_id(parent) for parent in parents[:_NAMES]],
        children=[graph.task_id(child) for child in children[:_NAMES]],
        parent_count=len(parents),
        child_count=len(children),
    )
    if graph.kind(number) is not Kind.TASK:
        return task
    policy = graph.policy(number)
    generates = policy.is_generator
    task.summary.task_type = TaskType.TASK_TYPE_GENERATOR if generates else TaskType.TASK_TYPE_COMMAND
    task.summary.pool = policy.pool
    task.max_retries, task.priority = policy.max_retries, policy.priority
    task.retry_delay.FromNanoseconds(round(policy.retry_delay * 1e9))
    details = graph.details(number)
    template = TaskTemplate(spec=TaskSpec.FromString(details.template), parameters=details.parameters)
    task.details.CopyFrom(Filling(template).spec(details.values))
    return task
