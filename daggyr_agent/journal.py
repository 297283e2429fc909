"""The agent's journal: what its next process must know if this one is killed, in a file of the state folder.

    whose           the tracker that the attempts belong to, its epoch, and the life of the coordinator's start
    what runs       processes that are not short ones, by their number and the tick at which they began
    what was told   each result, with the number of its output files, from the moment that it is known until it is acknowledged

`state` opens the journal, and that reads what an earlier process wrote. `agent` takes it up and calls `begin`. Then
executions, `descendants` and the outbox write down what happens. All of that is in the event loop; no thread of `slots` comes
here. What was written (write(2)) survives any end of this process. Nothing is flushed to the disk, because a host that loses
power has lost its processes too, and their attempts are run again.

**The file** is a sequence of records: length and CRC-32 of a body, then the body, which begins with its kind. The last record
may be torn. Anything else that cannot be read is a damage: the file is set aside, and what comes before the damage is used,
because each record is whole or not there. Once the file has doubled since it was last written anew (and is above a mebibyte),
a file with what still counts takes its place (rename(2)), so that its size is bounded by what waits for acknowledgement.

Results are acknowledged in the order in which they came, so that a count says which. They stay in memory as well, here and in
the outbox, so that a full disk costs nothing as long as the agent lives.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from daggyr.v1.task_pb2 import AttemptUpdate

from .proc import numbering

_FORMAT = 1
_FRAME = struct.Struct("<II")  # the body's length and CRC-32
_HEAD = struct.Struct("<cB")  # format; then whose process numbers are meant, as text
_TRACKER = struct.Struct("<cQ")  # epoch; then the tracker's id, as text
_LIFE = struct.Struct("<cQ")  # of the start of the coordinator that has welcomed the agent last; after its tracker
_RUNS = struct.Struct("<cIQ")  # process number, and when it began, in clock ticks since boot
_RESULT = struct.Struct("<cQ")  # number of the output files, 0 if there are none; then the update
_ACKNOWLEDGED = struct.Struct("<cI")  # how many of the oldest results

_MAX_BODY = 16 * 1024 * 1024
_LEAST_LIMIT = 1024 * 1024  # bytes, below which the file is not written anew
_PAUSE = 1.0  # seconds before a journal that could not be written is tried again

_log = logging.getLogger(__name__)


class _DamageError(Exception):
    """What cannot be read, and where."""


class Journal:
    """An opened journal. Writing never raises: a fault is logged, and the write is tried again later."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier process wrote, if any did. Raises OSError."""
        self.tracker_id = ""
        self.epoch = 0
        self.life = 0
        self._path = path
        self._descriptor = -1
        self._size = 0
        self._limit = 0
        self._mend_at: float | None = None  # when to write the file anew; None as long as it is right
        self._reason = ""  # why it could not be written
        self._numbering = numbering()
        self._same_numbers = True  # the file's process numbers and ticks are of this boot
        self._running: dict[int, int] = {}
        self._results: deque[bytes] = deque()  # as records
        self._gathered: list[bytes] | None = None  # what `together` gathers; None outside of it
        self._read()

    @property
    def running(self) -> dict[int, int]:
        """When each process began that runs or may run, by its number. Before `begin`, those are the earlier process's."""
        return dict(self._running)

    def results(self) -> list[tuple[AttemptUpdate, int]]:
        """The results that are not acknowledged, in order, each with the number of its output files or 0."""
        read = []
        for record in self._results:
            _, number = _RESULT.unpack_from(record, _FRAME.size)
            read.append((AttemptUpdate.FromString(record[_FRAME.size + _RESULT.size :]), number))
        return read

    def output_numbers(self) -> set[int]:
        """The numbers of the output files that belong to results."""
        return {_RESULT.unpack_from(record, _FRAME.size)[1] for record in self._results} - {0}

    def begin(self) -> None:
        """Let the journal be this process's. Nothing of the earlier process runs any more."""
        self._running.clear()
        try:
            self._write_anew()
        except OSError as error:
            self._fault(error.strerror or "")

    def belongs_to(self, tracker_id: str, epoch: int, life: int) -> None:
        """A coordinator has welcomed the agent. Results for another tracker are forgotten."""
        if (tracker_id, epoch, life) == (self.tracker_id, self.epoch, self.life):
            return
        if tracker_id != self.tracker_id:
            self._results.clear()
        self.tracker_id, self.epoch, self.life = tracker_id, epoch, life
        self._append(self._tracker())

    def runs(self, pid: int, born: int) -> None:
        """Note that a process runs that began at this tick. Nothing happens if that is known."""
        if self._running.get(pid) != born:
            self._running[pid] = born
            self._append(self._runs(pid, born))

    def ended(self, pid: int, born: int) -> None:
        """Forget a process that was reaped. Nothing is written: another process of its number begins at another time."""
        if self._running.get(pid) == born:
            del self._running[pid]

    def finished(self, update: AttemptUpdate, number: int) -> None:
        """Write down a result, with the number of its output files or 0."""
        record = _record(_RESULT.pack(b"R", number) + update.SerializeToString())
        self._results.append(record)
        self._append(record)

    def acknowledged(self, count: int) -> None:
        """Forget so many of the oldest results, which the coordinator has. To be called before their output is removed."""
        for _ in range(count):
            self._results.popleft()
        self._append(_record(_ACKNOWLEDGED.pack(b"A", count)))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Gather what is written down within, and write it at the end, because a write(2) costs more than a record."""
        gathered: list[bytes] = []
        self._gathered = gathered
        try:
            yield
        finally:
            self._gathered = None
            if gathered:
                self._append(b"".join(gathered))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # -- reading

    def _read(self) -> None:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            for at, body in _bodies(content):
                try:
                    self._take(body)
                except (struct.error, UnicodeDecodeError, DecodeError, IndexError) as error:
                    raise _DamageError(f"the record at byte {at} makes no sense: {error}") from None
        except _DamageError as damage:
            aside = self._path.with_name(self._path.name + ".damaged")
            self._path.replace(aside)
            _log.error(
                "the journal %s is damaged (%s): it is set aside as %s, and the %d results before the damage are kept",
                *(self._path, damage, aside, len(self._results)),
            )

    def _take(self, body: bytes) -> None:
        """Take up what a record says."""
        match body[:1]:
            case b"H":
                _, version = _HEAD.unpack_from(body)
                if version != _FORMAT:
                    raise _DamageError(f"it has format {version}, and this agent reads format {_FORMAT}")
                self._same_numbers = body[_HEAD.size :].decode() == self._numbering
            case b"T":
                _, self.epoch = _TRACKER.unpack_from(body)
                tracker_id = body[_TRACKER.size :].decode()
                if tracker_id != self.tracker_id:
                    self._results.clear()
                self.tracker_id, self.life = tracker_id, 0
            case b"L":
                _, self.life = _LIFE.unpack(body)
            case b"P":
                _, pid, born = _RUNS.unpack(body)
                if self._same_numbers:  # else the processes are gone, and their numbers others'
                    self._running[pid] = born
            case b"R":
                AttemptUpdate.FromString(body[_RESULT.size :])
                self._results.append(_record(body))
            case b"A":
                for _ in range(_ACKNOWLEDGED.unpack(body)[1]):
                    self._results.popleft()
            case kind:
                raise _DamageError(f"no record is of kind {kind!r}")

    # -- writing

    def _append(self, record: bytes) -> None:
        """Write a record, or several, of what is in memory already. Within `together`, only gather it."""
        if self._gathered is not None:
            self._gathered.append(record)
            return
        if self._mend_at is not None:
            self._mend()
            return
        try:
            written = os.write(self._descriptor, record)
        except OSError as error:
            self._fault(error.strerror or "")
            return
        if written < len(record):
            self._fault("the disk is full")
            return
        self._size += written
        if self._size >= self._limit:
            self._limit = self._size + _LEAST_LIMIT
            with contextlib.suppress(OSError):  # The old file is still right.
                self._write_anew()

    @property
    def fault(self) -> str | None:
        """Why the journal cannot be written, for a person: a part of a sentence; None if it can."""
        return None if self._mend_at is None else f"its journal cannot be written: {self._reason}"

    def is_in_place(self) -> bool:
        """Whether the file that is written is the one that the next process will read. Any thread may call this."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except OSError:
            return False

    def mend(self) -> None:
        """Try to write again, if the journal could not be written, or was taken away."""
        if self._mend_at is None and not self.is_in_place():
            self._reason, self._mend_at = "it was taken away", 0.0
        if self._mend_at is not None:
            self._mend_at = time.monotonic()
            self._mend()

    def _fault(self, reason: str) -> None:
        self._reason = reason
        self._mend_at = time.monotonic() + _PAUSE
        _log.error("cannot write %s (%s): until that is mended, results would be lost with this agent", self._path, reason)

    def _mend(self) -> None:
        now = time.monotonic()
        if self._mend_at is None or now < self._mend_at:
            return
        self._mend_at = now + _PAUSE
        with contextlib.suppress(OSError):
            self._write_anew()
            self._mend_at = None
            _log.info("%s is written again", self._path)

    def _write_anew(self) -> None:
        """Put a file that holds what counts now in the place of the old one. Raises OSError; then the old one stays."""
        draft = self._path.with_name(self._path.name + ".new")
        content = b"".join(self._all())
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            draft.replace(self._path)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        self.close()
        self._descriptor, self._size = descriptor, len(content)
        self._limit = max(_LEAST_LIMIT, 2 * self._size)

    def _all(self) -> Iterable[bytes]:
        yield _record(_HEAD.pack(b"H", _FORMAT) + self._numbering.encode())
        if self.tracker_id:
            yield self._tracker()
        for pid, born in self._running.items():
            yield self._runs(pid, born)
        yield from self._results

    def _tracker(self) -> bytes:
        tracker = _record(_TRACKER.pack(b"T", self.epoch) + self.tracker_id.encode())
        return tracker + _record(_LIFE.pack(b"L", self.life)) if self.life else tracker

    def _runs(self, pid: int, born: int) -> bytes:
        return _record(_RUNS.pack(b"P", pid, born))


def _record(body: bytes) -> bytes:
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def _bodies(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The bodies of the records, each with where its record begins, without a torn last one. Raises _DamageError."""
    at = 0
    while at + _FRAME.size <= len(content):
        length, checksum = _FRAME.unpack_from(content, at)
        if not 0 < length <= _MAX_BODY:
            raise _DamageError(f"the record at byte {at} has a length of {length} bytes")
        begin = at + _FRAME.size
        body = content[begin : begin + length]
        if len(body) < length:
            return
        if zlib.crc32(body) != checksum:
            raise _DamageError(f"the record at byte {at} does not match its checksum")
        yield at, body
        at = begin + length
