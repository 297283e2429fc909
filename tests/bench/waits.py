"""How long others wait while somebody asks something large of a server: a prober asks small things all the time.

    python tests/bench/waits.py [--tasks 200000]

A client asks for the pools, for a task of a small run, and to mark that task as what it is already, which goes the way of all
changes; beside it, another one submits, edits, retries, marks and kills runs of `--tasks` tasks with a sqlite tracker. For each
call it prints how long it took, the server's processor time, and the longest that the prober waited meanwhile. The aim is 100 ms
on a quiet machine. It asserts nothing but that the calls are granted.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from measured import PROGRAMS, TRUE, Coordinator, Spec, coordinator, expanded, layered, noop_agent

from daggyr.channel import open_channel
from daggyr.v1.run_pb2 import STATE_COMPLETED
from daggyr.v1.runs_pb2 import GetTaskRequest, ListPoolsRequest, MarkTasksRequest
from daggyr.v1.runs_pb2_grpc import RunsStub

SMALL = 1  # the id of the run that the prober asks about, unless told otherwise
PAUSE = 0.003  # seconds between two rounds


class Prober:
    """A process that asks, again and again: in one of its own, no other client of this one is in its way."""

    def __init__(self, address: str, run_id: int = SMALL) -> None:
        """`run_id` is that of a small run with a task `t` that is COMPLETED."""
        self._pipe, other = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_probe, args=(address, run_id, other), daemon=True)
        self._process.start()
        self.longest()

    def longest(self) -> tuple[float, float]:
        """The seconds of the longest answer since the last call: to what only reads, and to what may change something."""
        self._pipe.send("tell")
        found: tuple[float, float] = self._pipe.recv()
        return found

    def end(self) -> None:
        self._pipe.send("end")
        self._process.join()


def _probe(address: str, run_id: int, pipe: Connection) -> None:
    asyncio.run(_ask(address, run_id, pipe))


async def _ask(address: str, run_id: int, pipe: Connection) -> None:
    async with open_channel(address) as channel:
        stub = RunsStub(channel)
        longest = [0.0, 0.0]
        while True:
            for kind, call in (
                (0, lambda: stub.ListPools(ListPoolsRequest())),
                (0, lambda: stub.GetTask(GetTaskRequest(run_id=run_id, task_id="t"))),
                (1, lambda: stub.MarkTasks(MarkTasksRequest(run_id=run_id, tasks=["t"], state=STATE_COMPLETED))),
            ):
                begun = time.perf_counter()
                await call()
                longest[kind] = max(longest[kind], time.perf_counter() - begun)
            await asyncio.sleep(PAUSE)
            while pipe.poll():
                if pipe.recv() == "end":
                    return
                pipe.send(tuple(longest))
                longest = [0.0, 0.0]


class Waits:
    """Carries out what is large, and prints what it cost others."""

    def __init__(self, server: Coordinator, run_id: int = SMALL) -> None:
        self._server = server
        self._prober = Prober(server.address, run_id)

    def close(self) -> None:
        self._prober.end()

    def during(self, name: str, *arguments: str) -> dict[str, object]:
        """What a command prints as JSON."""
        with self.measured(name):
            return self._server.daggyr(*arguments)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        self._prober.longest()
        cpu, begun = self._server.cost.cpu_seconds, time.perf_counter()
        yield
        took, cpu = time.perf_counter() - begun, self._server.cost.cpu_seconds - cpu
        reads, changes = self._prober.longest()
        print(f"  {name:<28}{took:8.2f} s {cpu:8.2f} s {1000 * reads:8.0f} ms {1000 * changes:8.0f} ms", flush=True)


def changed(spec: Spec, name: str) -> Spec:
    """The same with another command in one task."""
    tasks = spec["tasks"]
    assert isinstance(tasks, dict)
    return {"tasks": {**tasks, name: {**tasks[name], "details": {"command": [TRUE, "again"]}}}}


def ended(server: Coordinator, run: str) -> None:
    """Return once a run has ended, however it did."""
    command = [str(PROGRAMS / "daggyr"), "--server", server.address, "watch", run]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures how long others wait while somebody asks something large.")
    parser.add_argument("--tasks", type=int, default=200_000)
    count = parser.parse_args().tasks
    print(f"{'':<30}  the call  processor  others read  others change")
    with coordinator("sqlite") as server:
        with noop_agent(server):
            server.run("small", {"tasks": {"t": {"details": {"command": [TRUE]}}}})
            waits = Waits(server)
            with waits.measured("nothing, for a second"):
                time.sleep(1)
            spec = layered(count)
            edited = server.document("edited", changed(spec, f"task-{count // 2}"))
            run = str(waits.during("submit", "submit", server.document("large", spec))["run_id"])
            ended(server, run)
            waits.during("edit --plan of a task", "edit", run, edited, "--plan")
            waits.during("edit of a task", "edit", run, edited)
            ended(server, run)
            waits.during("retry --downstream", "retry", run, "--task", "task-0", "--downstream")
            ended(server, run)
        run = str(waits.during("submit, one template", "submit", server.document("expanded", expanded(count)))["run_id"])
        for name, arguments in {
            "kill of all its tasks": ("kill", run, "t"),
            "retry of the run": ("retry", run),
            "mark, completed": ("mark", run, "t", "completed"),
            "mark, queued": ("mark", run, "t", "queued"),
            "kill": ("kill", run),
            "delete": ("delete", run),
        }.items():
            waits.during(name, *arguments)
        waits.close()


if __name__ == "__main__":
    main()
