"""The attempts that the machine wants started, as the contract's messages.

The loop calls this for each StartAttempts command. A batch holds each template once, and of each attempt its key and values. An
assignment is counted before it is added, so that only a single one can make a batch larger than MAX_BYTES. Nothing is kept
between calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from daggyr.v1.task_pb2 import AssignmentBatch
from daggyr_server.core.commands import StartAttempts
from daggyr_server.core.graph.graph import Graph
from daggyr_server.core.graph.segments import ExpandedSegment, Segment

MAX_ASSIGNMENTS = 512
MAX_BYTES = 1024 * 1024
_KEY_BYTES = 56  # An assignment takes about that beside its texts, at most.
_LETTER_BYTES = 4  # A letter takes at most that in UTF-8. Counting letters is quicker than encoding them.


def assignment_batches(command: StartAttempts, graph: Graph, life: int) -> Iterator[AssignmentBatch]:
    """Batches that hold the command's attempts in their order; their keys have this life.

    Each has at most MAX_ASSIGNMENTS, and at most MAX_BYTES of specifications, names and values unless it has one only.
    """
    batch = AssignmentBatch()
    assignments = batch.assignments
    size = 0
    run_id = command.run_id
    segment: Segment | None = None
    template = 0
    for number, attempt in zip(command.numbers, command.attempts, strict=True):
        owner = graph.segment_of(number)
        values: Sequence[str] = ()
        details = None
        if isinstance(owner, ExpandedSegment):
            if owner is not segment:
                details = owner.details
            values = owner.values_at(number - owner.first)
            name = owner.task_id(number - owner.first, values)
        else:
            details = owner.details[number - owner.base]
            name = owner.names[number - owner.base]
        own = _KEY_BYTES + _LETTER_BYTES * (len(name) + sum(map(len, values)))
        more = own + (len(details) if details is not None else 0)
        if assignments and (len(assignments) >= MAX_ASSIGNMENTS or size + more > MAX_BYTES):
            yield batch
            batch = AssignmentBatch()
            assignments = batch.assignments
            size = 0
            if isinstance(owner, ExpandedSegment):
                details = owner.details
                more = own + len(details)
        if details is not None:
            template = len(batch.templates)
            shared = batch.templates.add()
            shared.spec.MergeFromString(details)
            if isinstance(owner, ExpandedSegment):
                shared.parameters.extend(owner.parameters)
        segment = owner
        assignment = assignments.add()
        key = assignment.key
        key.run_id, key.task_number, key.attempt, key.life = run_id, number, attempt, life
        assignment.task_id = name
        assignment.values.extend(values)
        assignment.template = template
        size += more
    if assignments:
        yield batch
