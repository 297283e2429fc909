"""Assignments as messages that the wire takes: a batch as it is, or in parts if it is too large.

The agent executor calls `portions` with all that it is given, before it keeps or sends it. An assignment that no message can
carry comes in a part of its own, so that the executor can end its attempt. Nothing here sends.
"""

from __future__ import annotations

from collections.abc import Iterator

from daggyr.channel import MAX_MESSAGE_BYTES
from daggyr.v1.task_pb2 import AssignmentBatch

# The CoordinatorMessage around a batch takes a tag and a length (protobuf's wire format): five bytes at this size.
MAX_BATCH_BYTES = MAX_MESSAGE_BYTES - 5
MAX_KEYS = 50_000  # in one message: 33 bytes each at most


def portions(batch: AssignmentBatch) -> Iterator[tuple[AssignmentBatch, int]]:
    """`batch` in parts that can be sent, in order, each with its size in bytes.

    Only a part of one assignment can be larger than MAX_BATCH_BYTES: that one cannot be sent at all.
    """
    size = batch.ByteSize()
    count = len(batch.assignments)
    if size <= MAX_BATCH_BYTES or count < 2:
        if count == 1 and len(batch.templates) > 1:
            batch = _part(batch, 0, 1)  # the assignment is not too large because of templates that it does not use
            size = batch.ByteSize()
        yield batch, size
        return
    for start, end in ((0, count // 2), (count // 2, count)):
        yield from portions(_part(batch, start, end))


def _part(batch: AssignmentBatch, start: int, end: int) -> AssignmentBatch:
    """Return some of the assignments, with the templates that they use."""
    part = AssignmentBatch()
    places: dict[int, int] = {}
    for assignment in batch.assignments[start:end]:
        place = places.get(assignment.template)
        if place is None:
            place = places[assignment.template] = len(part.templates)
            part.templates.append(batch.templates[assignment.template])
        part.assignments.append(assignment)
        part.assignments[-1].template = place
    return part
