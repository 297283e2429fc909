"""What 100,000 runs that have ended cost: the start, the memory, and how long others wait while somebody asks something of them.

    python tests/bench/many.py [--runs 100000] [--postgres]

The tracker is filled as a coordinator would, with runs of three tasks, one of which wrote a line; then a server is started on it.
For each call it prints how long it took, the server's processor time, and the longest that a prober (see waits.py) waited
meanwhile. In the end all these runs are pruned. It asserts nothing but that the calls are granted. `--postgres` wants Debian's
package `postgresql`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measured import TRUE, Coordinator
from waits import Waits

from daggyr.v1.task_pb2 import STDOUT, AttemptResult, OutputSummary
from daggyr_server.core.records import AttemptRecorded, AttemptsAssigned, OutputKept, Record, RunAdded, RunMoved
from daggyr_server.core.states import Outcome, State
from daggyr_server.trackers.loader import make_tracker

CONFIG = '[pools.default]\nexecutor = "noop"\n'
LONG_AGO = 1_600_000_000.0
A_COMMIT = 250  # runs
LINE = b"a line that the task wrote\n"
TASKS = {
    "a": {"details": {"command": [TRUE, "a"]}, "children": ["b", "c"]},
    **{name: {"details": {"command": [TRUE, name]}} for name in "bc"},
}
DOCUMENT = json.dumps({"tasks": TASKS}).encode()


def of_one_run(run_id: int) -> Iterator[Record]:
    """What a coordinator commits for a run until it has ended."""
    time, end = LONG_AGO + run_id, LONG_AGO + run_id + 1
    yield RunAdded(run_id, f"request-{run_id}", {"number": str(run_id % 1000)}, "default", time, DOCUMENT)
    yield RunMoved(run_id, State.RUNNING, time, {})
    for number in range(3):
        yield AttemptsAssigned(run_id, "h1", "one", [number], [1], time)
        failed = number == 2 and run_id % 100 == 0
        outcome, state = (Outcome.FAILED, State.ERRORED) if failed else (Outcome.SUCCEEDED, State.COMPLETED)
        result = AttemptResult(outcome=int(outcome), exit_code=int(failed), cpu_seconds=0.001, max_rss_bytes=1 << 20)  # type: ignore[arg-type]
        result.start_time.FromSeconds(round(time))
        result.stop_time.FromSeconds(round(end))
        if not number:
            yield OutputKept(run_id, number, 1, STDOUT, 0, LINE)
            result.stdout.CopyFrom(OutputSummary(size_bytes=len(LINE)))
        yield AttemptRecorded(run_id, number, 1, outcome, "h1", "one", time, result, state)
    counts = {State.COMPLETED: 2, State.ERRORED: 1} if run_id % 100 == 0 else {State.COMPLETED: 3}
    ended = State.ERRORED if State.ERRORED in counts else State.COMPLETED
    yield RunMoved(run_id, ended, end, counts, command_states=counts, ran_seconds=1.0)


async def fill(address: str, runs: int) -> None:
    tracker = make_tracker(address)
    await tracker.open()
    for first in range(1, runs + 1, A_COMMIT):
        ids = range(first, min(first + A_COMMIT, runs + 1))
        await tracker.commit([record for run_id in ids for record in of_one_run(run_id)])
    await tracker.close()


@contextlib.contextmanager
def empty_tracker(folder: Path, *, postgres: bool) -> Iterator[str]:
    """The address of a tracker of its own."""
    if not postgres:
        yield f"sqlite:{folder}/state.db"
        return
    sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' own server
    from support.postgres_server import postgres_server

    with postgres_server() as server:
        server.execute("CREATE DATABASE many")
        yield server.url("many")


def resident_mb(server: Coordinator) -> float:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024 / 1e6


def measure(server: Coordinator) -> None:
    print(f"  answers after {server.start():.2f} s, with {resident_mb(server):.0f} MB", flush=True)
    small = server.document("small", {"tasks": {"t": {"details": {"command": [TRUE]}}}})
    begun = time.perf_counter()
    run_id = int(str(server.daggyr("submit", "--watch", small)["run_id"]))
    print(f"  the first run takes {time.perf_counter() - begun:.2f} s, from Enter to prompt", flush=True)
    waits = Waits(server, run_id)
    print(f"{'':<30}  the call  processor  others read  others change")
    with waits.measured("nothing, for a second"):
        time.sleep(1)
    old = str(run_id - 10)
    for name, arguments in {
        "submit": ("submit", small),
        "show last": ("show", "last"),
        "show of an old run": ("show", old),
        "tasks of an old run": ("tasks", str(run_id // 2)),
        "runs": ("runs",),
        "runs --state errored": ("runs", "--state", "errored"),
        "runs --state running": ("runs", "--state", "running"),
        "runs --tag": ("runs", "--tag", "number=7"),
        "prune of nothing": ("prune", "--older-than", "2001-01-01"),
        "prune of all": ("prune", "--older-than", "1d"),
    }.items():
        waits.during(name, *arguments)
    waits.close()
    print(f"  in the end {resident_mb(server):.0f} MB, at most {server.cost.peak_mb:.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures a server whose tracker holds many runs that have ended.")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--postgres", action="store_true", help="A Postgres server instead of a sqlite file.")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="daggyr-bench-")))
        address = stack.enter_context(empty_tracker(folder, postgres=options.postgres))
        asyncio.run(fill(address, options.runs))
        server = Coordinator(folder, address, CONFIG)
        try:
            measure(server)
        finally:
            server.process.terminate()
            server.process.wait()


if __name__ == "__main__":
    main()
