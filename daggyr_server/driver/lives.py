"""The lives of attempts in flight: which start of a coordinator each was assigned by, and so whose reports count.

The loop has one `Lives`. Nearly all attempts are of this start. Those that an earlier start assigned are kept by their numbers
until they end, so that the core and its objects need not know of lives. Nothing here assigns or ends an attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from daggyr.v1.task_pb2 import AttemptKey
from daggyr_server.core.commands import Key
from daggyr_server.core.stored import Adopted

log = logging.getLogger(__name__)


class Lives:
    """The lives of one coordinator's attempts. `own` is this start's; `earlier` has the attempts of other starts."""

    def __init__(self, own: int) -> None:
        self.own = own
        self.earlier: dict[Key, int] = {}  # those that were in flight when this coordinator started, and are still
        self._warned = False

    def take_up(self, run_id: int, adopted: Iterable[Adopted]) -> None:
        """Record the lives of attempts that an earlier coordinator assigned."""
        self.earlier.update({(run_id, sent.number, sent.attempt): sent.life for sent in adopted})

    def forget(self, key: Key) -> None:
        """Record that an attempt has ended."""
        self.earlier.pop(key, None)

    def key(self, key: Key) -> AttemptKey:
        """The whole key of an attempt in flight."""
        run_id, number, attempt = key
        return AttemptKey(run_id=run_id, task_number=number, attempt=attempt, life=self.earlier.get(key, self.own))

    def keys(self, keys: Iterable[Key]) -> list[AttemptKey]:
        """The whole keys of attempts in flight."""
        return [self.key(key) for key in keys]

    def counts(self, key: AttemptKey) -> bool:
        """Whether a report is of the attempt in flight that has its numbers, and not of one that another life gave the same."""
        return key.life == self.earlier.get((key.run_id, key.task_number, key.attempt), self.own)

    def warn(self, key: AttemptKey) -> None:
        """Say once that an executor reports on an attempt in flight with another life than it was given."""
        if not self._warned:
            self._warned = True
            log.warning(
                "what an executor tells of attempt %d of task number %d of run %d is passed over, because its key has life %x: "
                "an executor has to keep the whole key that it was given",
                *(key.attempt, key.task_number, key.run_id, key.life),
            )
