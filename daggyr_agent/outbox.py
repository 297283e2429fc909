"""What the agent has to tell, until the coordinator has made it durable: updates that wait, and numbered batches under way.

`attempts` and the no-op worker add updates. The session takes batches, sends them, and passes acknowledgements on. A batch
holds what waits at that moment, bounded by count and bytes. Output is in it as references to files, which are read each time
the batch is sent. A batch keeps its number and its content until it is acknowledged, through any number of sessions. Results
are in the journal from the moment they are known until then, so that the agent's next process can deliver them. Nothing here
sends.

**When a batch is due.** A message costs both sides more than a short attempt does, so results should share one, but no clock
says how long they wait for each other. An agent that is short of work (nothing waits for its slots) tells everything at once,
because the coordinator may have something new for it. An agent with work ahead gathers results until they are an eighth of the
attempts that wait. A tenth of a second's work is sent ahead, so that this takes about 12 ms. What somebody waits for is due at
once, and all that waits goes with it: the start of an attempt that is not a short one (`watch` finds that out), and the end of
an attempt that was asked to end. A full batch is due at once too.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from daggyr.attempts.keys import Ident, ident_of
from daggyr.bounds import are_bounded, bounded_notes
from daggyr.v1.agents_pb2 import AgentMessage
from daggyr.v1.task_pb2 import AttemptKey, AttemptResult, AttemptStarted, AttemptUpdate, OutputChunk

from .capture import Kept
from .journal import Journal

MAX_UPDATES = 512
MAX_BYTES = 1024 * 1024  # of output and notes; what an update takes beside them is less than 200 bytes
MAX_UNDER_WAY = 64
GATHERED = 8  # A batch is due with one result for so many attempts ahead.

_LETTER_BYTES = 4  # of UTF-8, at most

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Started:
    ident: Ident
    update: AttemptUpdate


@dataclass(slots=True)
class Output:
    """A piece of output that stays in its file until it is sent."""

    key: AttemptKey
    kept: Kept
    offset: int
    length: int


@dataclass(slots=True)
class Finished:
    """A result; `outputs` are released when it is acknowledged."""

    ident: Ident
    update: AttemptUpdate
    outputs: tuple[Kept, ...]


Item = Started | Output | Finished | AttemptUpdate  # A bare update belongs to an attempt that was never here.


@dataclass(slots=True)
class Batch:
    sequence: int
    items: list[Item]

    def message(self) -> AgentMessage:
        """The batch as it is sent, output read from its files."""
        message = AgentMessage()
        message.updates.sequence = self.sequence
        message.updates.updates.extend([_rendered(item) for item in self.items])
        return message


class Outbox:
    """Updates in their order. `added` is called when there is something new to send, `acknowledged` when less is left."""

    def __init__(self, journal: Journal, added: Callable[[], None], acknowledged: Callable[[], None]) -> None:
        self._journal = journal
        self._added = added
        self._acknowledged = acknowledged
        self._waiting: deque[Item] = deque()
        self._under_way: deque[Batch] = deque()
        self._waiting_bytes = 0  # of output
        self._urgent = False
        self._next = 1
        self._undelivered: dict[Ident, Finished] = {}

    @property
    def first_unacknowledged(self) -> int:
        """The number of the next batch to send, or to send again."""
        return self._under_way[0].sequence if self._under_way else self._next

    @property
    def empty(self) -> bool:
        """Whether everything told so far has been acknowledged."""
        return not self._waiting and not self._under_way

    def undelivered(self, ident: Ident) -> Finished | None:
        """The result of an attempt that has ended, as long as it is not acknowledged."""
        return self._undelivered.get(ident)

    def started(self, ident: Ident, key: AttemptKey, started: AttemptStarted) -> None:
        """Add the start of an attempt that is not a short one."""
        self._waiting.append(Started(ident, AttemptUpdate(key=key, started=started)))
        self.hurry()

    def finished(
        self, ident: Ident, key: AttemptKey, result: AttemptResult, outputs: tuple[Kept, ...] = (), *, ahead: int = 0
    ) -> None:
        """Add an attempt's output, and after it the result; `ahead` is as in `take`."""
        if result.notes and not are_bounded(result.notes):
            result.notes[:] = bounded_notes(result.notes)
        update = AttemptUpdate(key=key, finished=result)
        self._journal.finished(update, outputs[0].number if outputs else 0)
        self._keep(ident, update, outputs)
        if self._due(ahead):
            self._added()

    def restore(self, update: AttemptUpdate, outputs: tuple[Kept, ...]) -> None:
        """Add a result of an earlier process, which is in the journal. To be called in the journal's order."""
        if not are_bounded(update.finished.notes):
            update.finished.notes[:] = bounded_notes(update.finished.notes)
        self._keep(ident_of(update.key), update, outputs)
        self.hurry()

    def answer(self, updates: Iterable[AttemptUpdate]) -> None:
        """Add results of attempts that were never here and hold nothing."""
        self._waiting.extend(updates)
        self._added()

    def hurry(self) -> None:
        """Let all that waits be due now."""
        self._urgent = bool(self._waiting)
        self._added()

    def ended_keys(self) -> list[AttemptKey]:
        """The attempts whose results are not acknowledged."""
        updates = (item.update if isinstance(item, Finished) else item for item in self._items())
        return [update.key for update in updates if isinstance(update, AttemptUpdate)]

    def starts(self) -> set[Ident]:
        """The attempts whose starts are not acknowledged, so that the next coordinator will be told of them."""
        return {item.ident for item in self._items() if isinstance(item, Started)}

    def under_way(self) -> list[Batch]:
        """The batches that are numbered and not acknowledged, to be sent again in a new session."""
        return list(self._under_way)

    def take(self, ahead: int) -> Batch | None:
        """The next batch to send, or None if nothing is due; `ahead` is how many attempts wait for a slot."""
        waiting = self._waiting
        if not waiting or not self._due(ahead) or len(self._under_way) >= MAX_UNDER_WAY:
            return None
        items: list[Item | None] = []
        started: dict[Ident, int] = {}
        size = 0
        while waiting and len(items) < MAX_UPDATES:
            item = waiting[0]
            more = 0
            if isinstance(item, Output):
                more = item.length
            elif isinstance(item, Finished):
                more = _LETTER_BYTES * sum(map(len, item.update.finished.notes))
            if items and size + more > MAX_BYTES:
                break
            size += more
            waiting.popleft()
            if isinstance(item, Started):
                started[item.ident] = len(items)
            elif isinstance(item, Output):
                self._waiting_bytes -= item.length
            elif isinstance(item, Finished) and item.ident in started:  # The result implies the start.
                items[started[item.ident]] = None
            items.append(item)
        self._urgent = self._urgent and bool(waiting)
        batch = Batch(self._next, [item for item in items if item is not None])
        self._next += 1
        self._under_way.append(batch)
        return batch

    def acknowledge(self, sequence: int) -> None:
        """Forget all batches up to this number, and remove their output, because they are durable."""
        batches = []
        while self._under_way and self._under_way[0].sequence <= sequence:
            batches.append(self._under_way.popleft())
        results = sum(isinstance(item, Finished) for batch in batches for item in batch.items)
        if results:
            self._journal.acknowledged(results)
        for batch in batches:
            self._release(batch.items)
        self._acknowledged()
        if self._waiting:
            self._added()

    def resume(self, next_sequence: int) -> None:
        """Begin a session in which batches below this number are durable already."""
        self.acknowledge(next_sequence - 1)
        if not self._under_way:
            self._next = max(self._next, next_sequence)

    def belong_to(self, tracker_id: str, epoch: int, life: int) -> None:
        """Belong to this tracker from now on, and forget what was meant for another tracker and was not acknowledged.

        The numbers of the batches that were under way are used again, so that the new tracker sees none missing.
        """
        foreign = self._journal.tracker_id not in ("", tracker_id)
        self._journal.belongs_to(tracker_id, epoch, life)
        if not foreign:
            return
        self._next = self.first_unacknowledged
        self._release(self._items())
        self._under_way.clear()
        self._waiting.clear()
        self._waiting_bytes = 0

    def _items(self) -> Iterator[Item]:
        """All that is not acknowledged, in order."""
        for batch in self._under_way:
            yield from batch.items
        yield from self._waiting

    def _keep(self, ident: Ident, update: AttemptUpdate, outputs: tuple[Kept, ...]) -> None:
        for kept in outputs:
            for offset, length in kept.extent.pieces():
                self._waiting.append(Output(update.key, kept, offset, length))
                self._waiting_bytes += length
        item = Finished(ident, update, outputs)
        self._waiting.append(item)
        self._undelivered[ident] = item

    def _due(self, ahead: int) -> bool:
        count = len(self._waiting)
        return self._urgent or count * GATHERED >= ahead or count >= MAX_UPDATES or self._waiting_bytes >= MAX_BYTES

    def _release(self, items: Iterable[Item]) -> None:
        for item in items:
            if isinstance(item, Finished):
                del self._undelivered[item.ident]
                for kept in item.outputs:
                    kept.release()


def _rendered(item: Item) -> AttemptUpdate:
    if isinstance(item, AttemptUpdate):
        return item
    if not isinstance(item, Output):
        return item.update
    try:
        data = item.kept.read(item.offset, item.length)
    except OSError as error:
        _log.error("captured output was taken away from the state folder: %s", error)
        data = b""
    return AttemptUpdate(key=item.key, output=OutputChunk(stream=item.kept.stream, offset=item.offset, data=data))
