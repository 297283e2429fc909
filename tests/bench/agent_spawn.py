"""How fast the agent alone starts and ends processes, beside a bare loop that does nothing else, in the same run.

    .venv/bin/python tests/bench/agent_spawn.py [ROUNDS]

The coordinator here does no more than it must: it keeps the agent supplied and acknowledges. Each round runs the bare loop
(posix_spawn and pidfd, two at a time), `xargs -P2` and the agent with two slots, one after another; the ratios of a round are
worth more than its figures, which depend on what else the machine does.
"""

from __future__ import annotations

import asyncio
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "agent"))

from scripted_coordinator import Coordinator, Session, key
from support.task_specs import spec

from daggyr.v1.agents_pb2 import AgentMessage
from daggyr.v1.task_pb2 import SUCCEEDED, Assignment, AssignmentBatch, TaskTemplate

PROGRAM = "/bin/true"
SLOTS = 2
ATTEMPTS = 3000
NOOPS = 300_000
AHEAD = 200  # a tenth of a second's work


def bare() -> float:
    """Processes a second of a loop that only starts, waits and reaps."""
    epoll = select.epoll()
    running: dict[int, int] = {}
    started = ended = 0
    begin = time.perf_counter()
    while ended < ATTEMPTS:
        while len(running) < SLOTS and started < ATTEMPTS:
            pid = os.posix_spawn(PROGRAM, [PROGRAM], os.environb, setsid=True)
            descriptor = os.pidfd_open(pid)
            epoll.register(descriptor, select.EPOLLIN)
            running[descriptor] = pid
            started += 1
        for descriptor, _ in epoll.poll():
            os.wait4(running.pop(descriptor), 0)
            epoll.unregister(descriptor)
            os.close(descriptor)
            ended += 1
    epoll.close()
    return ATTEMPTS / (time.perf_counter() - begin)


def xargs() -> float:
    """Processes a second of `xargs -P2 -n1`."""
    begin = time.perf_counter()
    words = "\n".join(map(str, range(ATTEMPTS)))
    subprocess.run(["xargs", f"-P{SLOTS}", "-n1", PROGRAM], input=words, text=True, check=True)
    return ATTEMPTS / (time.perf_counter() - begin)


class Supply(Coordinator):
    """Keeps the agent supplied with attempts until `total` have succeeded."""

    def __init__(self, total: int, ahead: int) -> None:
        super().__init__()
        self.done = asyncio.Event()
        self.messages = 0
        self._total = total
        self._ahead = ahead
        self._sent = self._succeeded = 0

    async def supply(self, session: Session) -> None:
        """Send as many as may wait at the agent, once a quarter of them is missing."""
        room = min(self._ahead - (self._sent - self._succeeded), self._total - self._sent)
        if room and room >= min(self._ahead // 4, self._total - self._sent):
            template = TaskTemplate(spec=spec(PROGRAM))
            assignments = [Assignment(key=key(number), task_id=f"t{number}") for number in range(self._sent, self._sent + room)]
            await session.send(assign=AssignmentBatch(templates=[template], assignments=assignments))
            self._sent += room

    async def _read(self, session: Session, context: grpc.aio.ServicerContext) -> None:  # type: ignore[type-arg]
        while isinstance(message := await context.read(), AgentMessage):
            if message.HasField("updates"):
                self.messages += 1
                for update in message.updates.updates:
                    if update.HasField("finished"):
                        assert update.finished.outcome == SUCCEEDED
                        self._succeeded += 1
                await session.acknowledge(message.updates.sequence)
                await self.supply(session)
                if self._succeeded == self._total:
                    self.done.set()


async def agent(total: int, ahead: int, *arguments: str) -> tuple[float, float, float]:
    """Attempts a second, attempts a message, and the agent's processor time an attempt in microseconds."""
    supply = Supply(total, ahead)
    with tempfile.TemporaryDirectory() as folder:
        address = await supply.start(f"unix:{folder}/socket")
        command = ["--coordinator", address, "--state-dir", f"{folder}/state", "--name", "agent", "--resource", f"cores={SLOTS}"]
        options = ["--log-level", "warning", *arguments]
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "daggyr_agent", *command, *options)
        try:
            session = await supply.session()
            used, begin = processor_seconds(process.pid), time.perf_counter()
            await supply.supply(session)
            await supply.done.wait()
            seconds = time.perf_counter() - begin
            used = processor_seconds(process.pid) - used
        finally:
            process.terminate()
            await process.wait()
            await supply.stop()
    return total / seconds, total / supply.messages, used / total * 1e6


def processor_seconds(pid: int) -> float:
    """What a process has used so far, without its children (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def main(rounds: int) -> None:
    ratios: dict[str, list[float]] = {"bare": [], "xargs": []}
    for _ in range(rounds):
        figures = {"bare": bare(), "xargs": xargs()}
        rate, together, cost = await agent(ATTEMPTS, AHEAD)
        for name, figure in figures.items():
            ratios[name].append(rate / figure)
        others = ", ".join(f"{name} {figure:,.0f}/s" for name, figure in figures.items())
        print(f"agent {rate:,.0f}/s ({together:.0f} a message, {cost:.0f} us of processor each), {others}")
    for name, values in ratios.items():
        print(f"agent / {name}: median {statistics.median(values):.2f}, best {max(values):.2f}")
    rate, together, cost = await agent(NOOPS, 20_000, "--noop")
    print(f"--noop: {rate:,.0f}/s ({together:.0f} a message, {cost:.1f} us of processor each)")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
