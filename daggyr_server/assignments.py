"""What the machine wants started, as the contract's messages.

The driver calls this with each StartAttempts command. A template goes into a batch once, then keys and values; batches stay
well under gRPC's message limit whatever the tasks are. Nothing here is kept between calls.
"""

from __future__ import annotations

from collections.abc import Iterator

from daggyr.v1.task_pb2 import AssignmentBatch
from daggyr_server.core.commands import StartAttempts
from daggyr_server.core.graph import Graph
from daggyr_server.core.segments import ExpandedSegment, Segment

MAX_ASSIGNMENTS = 512
MAX_BYTES = 1024 * 1024


def assignment_batches(command: StartAttempts, graph: Graph) -> Iterator[AssignmentBatch]:
    """Batches that hold the command's attempts in their order.

    Each has at most MAX_ASSIGNMENTS, and stops growing at MAX_BYTES of specifications and values.
    """
    batch = AssignmentBatch()
    assignments = batch.assignments
    size = 0
    run_id = command.run_id
    segment: Segment | None = None
    template = 0
    for number, attempt in zip(command.numbers, command.attempts, strict=True):
        if len(assignments) >= MAX_ASSIGNMENTS or size >= MAX_BYTES:
            yield batch
            batch = AssignmentBatch()
            assignments = batch.assignments
            size, segment = 0, None
        assignment = assignments.add()
        key = assignment.key
        key.run_id, key.task_number, key.attempt = run_id, number, attempt
        owner = graph.segment_of(number)
        if isinstance(owner, ExpandedSegment):
            if owner is not segment:
                segment, template = owner, len(batch.templates)
                shared = batch.templates.add()
                shared.spec.MergeFromString(owner.details)
                shared.parameters.extend(owner.parameters)
                size += len(owner.details)
            values = owner.values_at(number - owner.first)
            assignment.values.extend(values)
            assignment.task_id = name = owner.task_id(number - owner.first)
            size += 2 * len(name)
        else:
            segment, template = owner, len(batch.templates)
            details = owner.details[number - owner.base]
            batch.templates.add().spec.MergeFromString(details)
            assignment.task_id = owner.names[number - owner.base]
            size += len(details)
        assignment.template = template
    if assignments:
        yield batch
