"""What executors may tell: the bounds of every field of what agents say, and of the updates of all executors.

The servicer of agents asks `fault_in` for each message of an agent and ends the session over the first fault. Updates of other
executors, which they make of files, shells and Slurm's answers, pass `mended` on their way to the driver: a value that cannot
be is left out, with a note, because there is nobody to refuse. The API asks `mend_result` for results that a tracker kept
before there were bounds. So nothing gets to the machine, a tracker or a reader that one of them could not hold, add up or show.
This module is pure, and each rule stands in it once.

A fault is told by the field's path and its value. Kinds of messages and updates that later versions may add are no fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from daggyr.attempts.kept import CHUNK_BYTES
from daggyr.bounds import MAX_RESOURCES, MAX_UNITS, MAX_WORD, bounded_notes
from daggyr.v1.agents_pb2 import AgentMessage, Heartbeat, Hello
from daggyr.v1.task_pb2 import FAILED, AttemptKey, AttemptOutcome, AttemptResult, AttemptUpdate, HostFault, OutputChunk
from daggyr_server.executors.agents.pins import KEY_BYTES

MAX_NUMBER = 2**62  # of runs, batches, bytes: sums of two still fit an int64
MAX_SECONDS = 253_370_764_800  # the year 9999: later times cannot be shown everywhere (RFC 3339)
MAX_CPU_SECONDS = 1e12
MAX_REASON = 1_000  # characters of why a host is at fault, or offers less than it was meant to
MAX_PAUSE = 86_400  # seconds of one pause of a host at fault
MAX_LOAD = 1e9
MAX_EXIT_CODE = 255  # exit(3)
MAX_SIGNAL = 64  # SIGRTMAX, signal(7)
MAX_PLACEMENT_WORD = 2_000  # characters of each text of a placement
MAX_NOTES = 64
MAX_NOTE_BYTES = 256 * 1024  # of all notes of a result; an agent tells at most half of that
MAX_HELD = 100_000  # attempts that an agent may have: a welcome may have to name them all; an agent takes half as many
MAX_KEYS = 200_000  # of those that have ended, or run
_MAX_SHOWN = 100
_SECOND = 1_000_000_000
_LAST_OUTCOME = max(AttemptOutcome.values())


def fault_in(message: AgentMessage) -> str | None:
    """Return what is wrong with a message of an agent, in words for a log and for the agent, or None."""
    kind = message.WhichOneof("message")
    if kind == "updates":
        batch = message.updates
        if not 0 < batch.sequence < MAX_NUMBER:
            return _words("updates.sequence", batch.sequence)
        for update in batch.updates:
            field = _update_fault(update)
            if field:
                return _words(f"updates.{field}", _value(update, field))
    elif kind == "heartbeat":
        field = _heartbeat_fault(message.heartbeat)
        if field:
            return _words(f"heartbeat.{field}", _value(message.heartbeat, field))
    elif kind == "followed":
        followed = message.followed
        if followed.HasField("chunk") and (field := _chunk_fault(followed.chunk)):
            return _words(f"followed.chunk.{field}", getattr(followed.chunk, field))
    elif kind == "hello":
        return _hello_fault(message.hello)
    return None


def mended(updates: Iterable[AttemptUpdate]) -> list[AttemptUpdate]:
    """Return the updates without values that cannot be. They are changed in place; those of which nothing is left are dropped."""
    sound: list[AttemptUpdate] = []
    for update in updates:
        field = _update_fault(update)
        if not field:
            sound.append(update)
        elif field.startswith("key"):
            continue
        elif field == "output.data":
            sound += _in_pieces(update)
        elif field.startswith("started"):
            update.started.start_time.GetCurrentTime()
            sound.append(update)
        elif field.startswith("finished"):
            mend_result(update.finished)
            sound.append(update)
    return sound


def mend_result(result: AttemptResult) -> None:
    """Take values that cannot be out of a result, and say so in its notes."""
    said = []
    while field := _result_fault(result):
        if field == "notes":
            result.notes[:] = bounded_notes(result.notes)
            continue
        said.append(f"{_words(field, getattr(result, field))}; it is left out")
        if field == "outcome":
            result.outcome = FAILED  # what is unknown is no success
        else:
            result.ClearField(field)
    result.notes.extend(said)


# -- the rules --------------------------------------------------------------------------------------------------------
# Each returns the name of the first field that is out of bounds, or "". Not a number fails every comparison.


# Results are many: the rules of one are written out in one function, because calls would cost as much again.


def _result_fault(result: AttemptResult) -> str:
    if not 0 < result.outcome <= _LAST_OUTCOME:
        return "outcome"
    if not 0 <= result.exit_code <= MAX_EXIT_CODE:
        return "exit_code"
    if not 0 <= result.signal <= MAX_SIGNAL:
        return "signal"
    if not 0 <= result.cpu_seconds <= MAX_CPU_SECONDS:
        return "cpu_seconds"
    if result.max_rss_bytes > MAX_NUMBER:
        return "max_rss_bytes"
    # An end before the start is no fault: the host's clock was set back meanwhile.
    time = result.start_time
    if not (0 <= time.seconds < MAX_SECONDS and 0 <= time.nanos < _SECOND):
        return "start_time"
    time = result.stop_time
    if not (0 <= time.seconds < MAX_SECONDS and 0 <= time.nanos < _SECOND):
        return "stop_time"
    if result.HasField("stdout"):
        output = result.stdout
        if not output.cut_offset + output.cut_bytes <= output.size_bytes <= MAX_NUMBER:
            return "stdout"
    if result.HasField("stderr"):
        output = result.stderr
        if not output.cut_offset + output.cut_bytes <= output.size_bytes <= MAX_NUMBER:
            return "stderr"
    if result.HasField("placement"):
        where = result.placement
        if max(map(len, (where.host, where.job, where.node, where.state, where.reason))) > MAX_PLACEMENT_WORD:
            return "placement"
    notes = result.notes
    if notes and (len(notes) > MAX_NOTES or sum(len(note.encode()) for note in notes) > MAX_NOTE_BYTES):
        return "notes"
    return ""


def _update_fault(update: AttemptUpdate) -> str:
    key = update.key
    if not key.attempt or not 0 < key.run_id < MAX_NUMBER:
        return f"key.{_key_fault(key)}"
    if update.HasField("finished"):
        field = _result_fault(update.finished)
        return f"finished.{field}" if field else ""
    if update.HasField("output"):
        field = _chunk_fault(update.output)
        return f"output.{field}" if field else ""
    time = update.started.start_time
    return "" if 0 <= time.seconds < MAX_SECONDS and 0 <= time.nanos < _SECOND else "started.start_time"


def _key_fault(key: AttemptKey) -> str:
    if not 0 < key.run_id < MAX_NUMBER:
        return "run_id"
    return "" if key.attempt else "attempt"


def _chunk_fault(chunk: OutputChunk) -> str:
    if not 1 <= chunk.stream <= 2:
        return "stream"
    if chunk.offset > MAX_NUMBER:
        return "offset"
    return "" if len(chunk.data) <= CHUNK_BYTES else "data"


def _heartbeat_fault(heartbeat: Heartbeat) -> str:
    if not 0 <= heartbeat.load_average <= MAX_LOAD:
        return "load_average"
    if not 0 <= heartbeat.cpu_percent <= 100:
        return "cpu_percent"
    if heartbeat.memory_available_bytes > MAX_NUMBER:
        return "memory_available_bytes"
    return _host_fault_fault(heartbeat.fault) if heartbeat.HasField("fault") else ""


def _host_fault_fault(fault: HostFault) -> str:
    if len(fault.reason) > MAX_REASON or not fault.reason.isprintable():
        return "fault.reason"
    return "" if 0 <= fault.pause.seconds <= MAX_PAUSE and 0 <= fault.pause.nanos < _SECOND else "fault.pause"


def _hello_fault(hello: Hello) -> str | None:
    missing = [field for field in ("agent_id", "incarnation", "name", "pool", "resources") if not getattr(hello, field)]
    if missing:
        return f"the hello has no {', '.join(missing)}"
    for field in ("agent_id", "incarnation", "name", "pool", "tracker_id", "version"):
        word = getattr(hello, field)
        if len(word) > MAX_WORD or not word.isprintable():
            return f"{_words(f'hello.{field}', word)}: it has at most {MAX_WORD} printable characters"
    if len(hello.agent_key) not in (0, KEY_BYTES):
        return f"hello.agent_key has {len(hello.agent_key)} bytes, and {KEY_BYTES} are right"
    if any(units < 0 for units in hello.resources.values()) or not hello.resources.get("cores"):
        return f"agent {hello.name!r} offers no cores, or less than none of a resource"
    if len(hello.resources) > MAX_RESOURCES:
        return f"agent {hello.name!r} offers {len(hello.resources)} resources, and {MAX_RESOURCES} are the most"
    for resource, units in hello.resources.items():
        if not resource or len(resource) > MAX_WORD or not resource.isprintable():
            return f"{_words('hello.resources', resource)}: a name has at most {MAX_WORD} printable characters"
        if units > MAX_UNITS:
            return f"agent {hello.name!r} offers {units} of {resource}, and {MAX_UNITS} are the most"
    if hello.HasField("fault") and (field := _host_fault_fault(hello.fault)):
        return _words(f"hello.{field}", _value(hello, field))
    if len(hello.shortage) > MAX_REASON or not hello.shortage.isprintable():
        return _words("hello.shortage", hello.shortage)
    if not (0 <= hello.ends_in.seconds < MAX_SECONDS and 0 <= hello.ends_in.nanos < _SECOND):
        return _words("hello.ends_in", hello.ends_in)
    for field in ("epoch", "first_unacknowledged"):
        if getattr(hello, field) >= MAX_NUMBER:
            return _words(f"hello.{field}", getattr(hello, field))
    if len(hello.held) > MAX_HELD:
        return f"agent {hello.name!r} holds {len(hello.held):,} attempts; the most is {MAX_HELD:,}"
    for field in ("held", "ended"):
        keys = getattr(hello, field)
        if len(keys) > MAX_KEYS:
            return f"hello.{field} has {len(keys)} attempts, and {MAX_KEYS} are the most"
        if wrong := next(filter(None, map(_key_fault, keys)), ""):
            return _words(f"hello.{field}.{wrong}", next(getattr(key, wrong) for key in keys if _key_fault(key)))
    return None


# -- words ------------------------------------------------------------------------------------------------------------


def _words(field: str, value: object) -> str:
    shown = f"{len(value)} bytes" if isinstance(value, bytes) else " ".join(repr(value).split())
    return f"{field} is out of bounds ({shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + '...'})"


def _value(message: Any, path: str) -> object:
    for name in path.split("."):
        message = getattr(message, name)
    return message


def _in_pieces(update: AttemptUpdate) -> Iterator[AttemptUpdate]:
    chunk = update.output
    for first in range(0, len(chunk.data), CHUNK_BYTES):
        piece = OutputChunk(stream=chunk.stream, offset=chunk.offset + first, data=chunk.data[first : first + CHUNK_BYTES])
        yield AttemptUpdate(key=update.key, output=piece)
