"""Many agents in one process: real sessions, whose attempts take a while and cost nothing. Started by agents.py.

    python tests/bench/simulated_agents.py ADDRESS FIRST COUNT CORES SECONDS

Agents FIRST to FIRST + COUNT - 1 join the default pool with CORES each; an attempt ends SECONDS after it started. Everything but
the processes is the agent's own code: connection, session, outbox, journal.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from daggyr.attempts.times import timestamp
from daggyr.v1.task_pb2 import SUCCEEDED, AssignmentBatch, AttemptKey, AttemptResult, AttemptStarted, AttemptUpdate
from daggyr_agent.config import Config
from daggyr_agent.connection import Connection
from daggyr_agent.journal import Journal
from daggyr_agent.noop import Noop
from daggyr_agent.outbox import Outbox
from daggyr_agent.session import Membership


class Holding(Noop):
    """Answers each assignment after some time, as many at once as there are cores."""

    def __init__(self, outbox: Outbox, cores: int, seconds: float) -> None:
        super().__init__(outbox)
        self._cores, self._seconds = cores, seconds
        self._queue: list[AttemptKey] = []
        self._loop = asyncio.get_running_loop()
        self.running = 0

    def assign(self, batch: AssignmentBatch) -> None:
        self._queue += [assignment.key for assignment in batch.assignments]
        self._start()

    def recall(self, keys: Iterable[AttemptKey]) -> None:
        """All that waits starts sooner or later: nothing is handed back."""

    def _start(self) -> None:
        free = self._cores - self.running
        keys, self._queue = self._queue[:free], self._queue[free:]
        if keys:
            now = timestamp(time.time_ns())
            self.running += len(keys)
            self._outbox.answer([AttemptUpdate(key=key, started=AttemptStarted(start_time=now)) for key in keys])
            self._loop.call_later(self._seconds, self._end, keys, now)

    def _end(self, keys: list[AttemptKey], started: Timestamp) -> None:
        self.running -= len(keys)
        result = AttemptResult(outcome=SUCCEEDED, exit_code=0, start_time=started, stop_time=timestamp(time.time_ns()))
        self._outbox.answer([AttemptUpdate(key=key, finished=result) for key in keys])
        self._start()


async def join(address: str, number: int, cores: int, seconds: float, folder: Path) -> None:
    """One agent, until it is cancelled."""
    news = asyncio.Event()
    journal = Journal(folder / f"journal-{number}")
    journal.begin()
    outbox = Outbox(journal, news.set, lambda: None)
    name = f"simulated-{number}"
    config = Config(
        coordinator=address,
        name=name,
        pool="default",
        resources={"cores": cores},
        state_dir=folder,
        token_file=None,
        tls=None,
        insecure=False,
        noop=True,
        log_level="error",
        lifeline=None,
    )
    membership = Membership(
        agent_id=f"{name}-id",
        agent_key=secrets.token_bytes(32),
        incarnation=f"{name}-{time.time_ns()}",
        name=name,
        pool="default",
        resources={"cores": cores},
        tracker_id="",
        epoch=0,
        life=0,
    )
    await Connection(config, membership, Holding(outbox, cores, seconds), outbox, news, lambda: None, lambda: None).run()


async def main(address: str, first: int, count: int, cores: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="daggyr-bench-agents-") as folder:
        await asyncio.gather(*(join(address, number, cores, seconds, Path(folder)) for number in range(first, first + count)))


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
    except KeyboardInterrupt:
        sys.exit(0)
