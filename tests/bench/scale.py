"""Runs of up to a million no-op tasks: time, memory, answers meanwhile, and kill -9 in the middle.

    python tests/bench/scale.py [--tasks 1000000] [--csv growth.csv] [--svg growth.svg] [--only growth,answers,explicit,killed]

growth    tasks of one template from 1,000 to `--tasks`, memory and sqlite, each on a server of its own: tasks a second, and what
          each costs coordinator and agent
answers   while the largest run goes on: how long `ListRuns` and `GetRun` take, by one client that asks all the time
explicit  distinct tasks with three edges each, sqlite: from submit to accepted, peak memory, and the whole run
killed    kill -9 of the coordinator when half of the largest run is done, sqlite: until it works again, and that nothing is lost

A no-op task goes all the way but for the fork: it is placed, made durable, sent, answered, made durable again, acknowledged.
It asserts nothing but that runs complete.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
from measured import Coordinator, Cost, coordinator, expanded, layered, noop_agent, took
from plotted import plot

from daggyr.channel import open_channel
from daggyr.v1.runs_pb2 import GetRunRequest, ListRunsRequest
from daggyr.v1.runs_pb2_grpc import RunsStub

Row = dict[str, object]


def growth(sizes: list[int]) -> list[Row]:
    rows: list[Row] = []
    for tracker in ("memory", "sqlite"):
        print(f"growth, {tracker}: tasks of one template through a --noop agent")
        for count in sizes:
            with coordinator(tracker) as server, noop_agent(server) as agent:
                server.run("warm", expanded(1_000))
                before, agent_before = server.cost, Cost.of(agent)
                path = server.document("run", expanded(count))
                started = time.perf_counter()
                run = server.daggyr("submit", path)
                accepted = time.perf_counter() - started
                seconds = took(watched(server, run))
                after, agent_after = server.cost, Cost.of(agent)
                row: Row = {
                    "tracker": tracker,
                    "tasks": count,
                    "seconds": round(seconds, 3),
                    "tasks_per_second": round(count / seconds),
                    "submit_seconds": round(accepted, 3),
                    "coordinator_cpu_us_per_task": round(1e6 * (after.cpu_seconds - before.cpu_seconds) / count, 1),
                    "agent_cpu_us_per_task": round(1e6 * (agent_after.cpu_seconds - agent_before.cpu_seconds) / count, 1),
                    "coordinator_peak_mb": round(after.peak_mb),
                    "agent_peak_mb": round(agent_after.peak_mb),
                }
            rows.append(row)
            print(
                f"  {count:>9,}  {row['tasks_per_second']:>7,}/s  submit {row['submit_seconds']} s  "
                f"coordinator {row['coordinator_cpu_us_per_task']} us a task, {row['coordinator_peak_mb']} MB  "
                f"agent {row['agent_cpu_us_per_task']} us a task, {row['agent_peak_mb']} MB",
                flush=True,
            )
    return rows


def watched(server: Coordinator, run: Row) -> Row:
    """A run, once it has ended."""
    server_command = ["watch", str(run["run_id"])]
    subprocess.run(
        [str(Path(sys.executable).parent / "daggyr"), "--server", server.address, *server_command],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return server.daggyr("show", str(run["run_id"]))


class Asker(threading.Thread):
    """A client that asks, again and again, and takes the time of each answer; between two rounds it waits for `pause` seconds."""

    def __init__(self, address: str, pause: float = 0.01) -> None:
        super().__init__(daemon=True)
        self.pause = pause
        self.address = address
        self.times: dict[str, list[float]] = {"ListRuns": [], "GetRun": []}
        self.stopped = threading.Event()

    def run(self) -> None:
        asyncio.run(self._ask())

    async def _ask(self) -> None:
        async with open_channel(self.address) as channel:
            stub = RunsStub(channel)
            calls = {"ListRuns": lambda: stub.ListRuns(ListRunsRequest()), "GetRun": lambda: stub.GetRun(GetRunRequest())}
            while not self.stopped.is_set():
                for name, call in calls.items():
                    started = time.perf_counter()
                    try:
                        await call()  # type: ignore[no-untyped-call]  # grpc.aio has no types for it
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.NOT_FOUND:
                            raise
                    self.times[name].append(time.perf_counter() - started)
                await asyncio.sleep(self.pause)

    def report(self) -> None:
        for name, times in self.times.items():
            cuts = statistics.quantiles(times, n=100)
            print(
                f"  {name}: {len(times):,} answers, median {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms, "
                f"worst {1000 * max(times):.0f} ms"
            )


def answers(count: int) -> None:
    for tracker in ("memory", "sqlite"):
        print(f"answers during a run of {count:,}, {tracker}", flush=True)
        with coordinator(tracker) as server, noop_agent(server):
            server.run("warm", expanded(1_000))
            asker = Asker(server.address)
            asker.start()
            seconds = server.run("run", expanded(count))
            asker.stopped.set()
            asker.join()
            asker.report()
            print(f"  meanwhile {count / seconds:,.0f} tasks/s", flush=True)


def explicit(count: int) -> None:
    print(f"explicit: {count:,} distinct tasks with three edges each, sqlite", flush=True)
    with coordinator("sqlite") as server, noop_agent(server):
        server.run("warm", expanded(1_000))
        path = server.document("run", layered(count))
        print(f"  document of {Path(path).stat().st_size / 1e6:,.0f} MB", flush=True)
        asker = Asker(server.address)
        asker.start()
        started = time.perf_counter()
        run = server.daggyr("submit", path)
        print(f"  accepted after {time.perf_counter() - started:.1f} s, peak {server.cost.peak_mb:,.0f} MB", flush=True)
        seconds = took(watched(server, run))
        asker.stopped.set()
        asker.join()
        asker.report()
        print(f"  {count / seconds:,.0f} tasks/s, peak {server.cost.peak_mb:,.0f} MB", flush=True)


def killed(count: int) -> None:
    print(f"killed: kill -9 in the middle of {count:,} tasks, sqlite", flush=True)
    with coordinator("sqlite") as server, noop_agent(server):
        run = server.daggyr("submit", server.document("run", expanded(count)))
        while completed(server, run) < count // 2:
            time.sleep(0.2)
        server.kill()
        started = time.perf_counter()
        listening = server.start()
        before = completed(server, run)
        answered = time.perf_counter() - started
        while completed(server, run) == before:
            time.sleep(0.02)
        print(f"  takes connections after {listening:.1f} s, answers after {answered:.1f} s, works after ", end="")
        print(f"{time.perf_counter() - started:.1f} s; {before:,} were done", flush=True)
        ended = watched(server, run)
        assert ended["task_states"] == {"COMPLETED": count + 2}, ended
        print(f"  all {count:,} COMPLETED")


def completed(server: Coordinator, run: Row) -> int:
    states = server.daggyr("show", str(run["run_id"]))["task_states"]
    assert isinstance(states, dict)
    return int(states.get("COMPLETED", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures runs of up to a million tasks.")
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--only", default="growth,answers,explicit,killed")
    options = parser.parse_args()
    parts = options.only.split(",")
    if "growth" in parts:
        sizes = [size for size in (1_000, 10_000, 100_000) if size < options.tasks] + [options.tasks]
        rows = growth(sizes)
        if options.csv:
            with options.csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        if options.svg:
            options.svg.write_text(plot(rows))
    for name, measure in (("answers", answers), ("explicit", explicit), ("killed", killed)):
        if name in parts:
            measure(options.tasks)


if __name__ == "__main__":
    main()
