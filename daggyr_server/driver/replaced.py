"""What is kept of a specification that an edit replaced, as bytes for the tracker: names, policies, and how its tasks went over.

An edit writes it with the machine's record (`editing.py`), and recovery reads it (`growing.py`), so that a run that was edited
ten times costs at a start what one specification costs, and not what eleven do. The documents stay in the tracker all the same:
bytes that cannot be read, or edits of versions that wrote none, only cost time. Pure; nothing here reads a tracker.

The bytes are a sequence of parts, each with its length before it in 4 bytes: a head, then pieces of the tasks. Parts are small,
so that no other thread waits for long while one of them is made or read.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from typing import Any

import msgspec

from daggyr_server.core.graph.carry import Carry
from daggyr_server.core.graph.graph import Graph, Replaced
from daggyr_server.core.graph.segments import ExpandedSegment, PlainSegment, Policy, Segment

_FORM = 1  # of the bytes; others are not read
_NAMES_A_PART = 20_000


class _Head(msgspec.Struct, array_like=True):
    """What stands once."""

    form: int
    base: int  # the first task's number
    beyond: int  # the first number behind the last task's
    policies: list[Policy]
    carry: tuple[bytes, bytes, bytes, bytes]
    counted: tuple[bytes, bytes, bytes] = (b"", b"", b"")  # new, old, count; see Addition.after


class _Plain(msgspec.Struct, array_like=True, tag=1):
    """Tasks that were not multiplied: a part of a segment, or all of it."""

    base: int  # of the segment
    names: list[str]
    policies: bytes


class _Expanded(msgspec.Struct, array_like=True, tag=2):
    """A task that was multiplied."""

    base: int
    name: str
    parameters: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    policy: int


class Unreadable(ValueError):
    """Bytes that tell nothing of a specification, or not of this one."""


def encoded(graph: Graph, carry: Carry) -> bytes:
    """What is to be kept of `graph`, all of which an edit replaces as `carry` says."""
    news, olds, counts, same = carry.columns
    counted = graph.counted_from.since(graph.live).columns
    head = _Head(
        form=_FORM,
        base=graph.live,
        beyond=graph.size,
        policies=graph.policies,
        carry=(_packed(news), _packed(olds), _packed(counts), bytes(same)),
        counted=(_packed(counted[0]), _packed(counted[1]), _packed(counted[2])),
    )
    found = bytearray()
    for part in (head, *_parts(graph.segments)):
        data = msgspec.msgpack.encode(part)
        found += len(data).to_bytes(4, "little")
        found += data
    return bytes(found)


def _parts(segments: list[Segment]) -> Iterator[_Plain | _Expanded]:
    for segment in segments:
        if isinstance(segment, ExpandedSegment):
            yield _Expanded(segment.base, segment.name, segment.parameters, segment.values, segment.policy)
            continue
        for start in range(0, segment.size, _NAMES_A_PART):
            beyond = start + _NAMES_A_PART
            yield _Plain(segment.base, segment.names[start:beyond], _packed(segment.policies[start:beyond]))


def decoded(data: bytes, start: int) -> Replaced:
    """What was encoded of a specification whose first task has the number `start`. Raises Unreadable."""
    try:
        parts = _split(data)
        head = msgspec.msgpack.decode(next(parts), type=_Head)
        if head.form != _FORM or head.base != start:
            raise Unreadable("it is of another specification, or of another version")
        policies = head.policies
        after = list(zip(*map(_unpacked, head.counted), strict=True))
        replaced = Replaced(policies, _segments(parts), _carry(head.carry), after)
    except (msgspec.DecodeError, StopIteration, ValueError) as error:
        raise Unreadable(str(error)) from None
    beyond = start
    for segment in replaced.segments:
        if segment.base != beyond:
            raise Unreadable("tasks are missing")
        beyond += segment.size
        used = segment.policies if isinstance(segment, PlainSegment) else [segment.policy]
        if max(used, default=0) >= len(policies):
            raise Unreadable("policies are missing")
    if beyond != head.beyond:
        raise Unreadable("tasks are missing")
    return replaced


def _split(data: bytes) -> Iterator[memoryview]:
    view, start = memoryview(data), 0
    while start < len(data):
        beyond = start + 4 + int.from_bytes(view[start : start + 4], "little")
        if beyond > len(data):
            raise Unreadable("it ends too early")
        yield view[start + 4 : beyond]
        start = beyond


def _segments(parts: Iterator[memoryview]) -> list[Segment]:
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(_Plain | _Expanded)
    found: list[Segment] = []
    for data in parts:
        part = decoder.decode(data)
        if isinstance(part, _Expanded):
            found.append(ExpandedSegment(part.base, part.name, part.parameters, part.values, b"", part.policy))
            continue
        policies = _unpacked(part.policies)
        if len(policies) != len(part.names):
            raise Unreadable("names and policies are of different tasks")
        last = found[-1] if found else None
        if isinstance(last, PlainSegment) and last.base == part.base:
            last.names += part.names
            last.policies += policies
            last.size += len(part.names)
        else:
            found.append(PlainSegment(part.base, part.names, [], policies, array("I"), array("I")))
    return found


def _carry(columns: tuple[bytes, bytes, bytes, bytes]) -> Carry:
    carry = Carry()
    for new, old, count, same in zip(*map(_unpacked, columns[:3]), columns[3], strict=True):
        carry.add(new, old, count, same=bool(same))
    return carry


def _packed(numbers: array[int]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _unpacked(data: bytes) -> array[int]:
    numbers = array("I")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
