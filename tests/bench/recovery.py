"""How long a coordinator takes to begin again after kill -9, in the middle of a run of 100,000 tasks.

    python tests/bench/recovery.py [--tasks 100000] [--rounds 3] [--tracker postgresql://...]

Half of the tasks are done, by an agent that does not fork; the other half waits for a pool in which there is nobody. Three runs
are looked at: two tasks that were expanded, explicit tasks side by side, and explicit tasks in chains. Printed are the medians of
the time from the start of the process until it takes connections, how much of that a coordinator with an empty tracker does not
need, and the time from then until `show` tells of a run that is back. The aim is 2 s together for 100,000 tasks. It asserts
nothing but that nothing is lost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = Path(sys.executable).parent
CONFIG = """
[server]
default_pool = "done"
[pools.done]
executor = "agent"
[pools.waits]
executor = "agent"
"""
Spec = dict[str, object]


class Coordinator:
    """One that can be killed, on a socket of its own in a folder of its own."""

    def __init__(self, folder: Path, tracker: str) -> None:
        self._folder = folder
        self._tracker = tracker
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"unix:{folder}/s/server.sock"
        (folder / "server.toml").write_text(CONFIG)

    def start(self) -> float:
        """Seconds until connections are taken."""
        ready = self._folder / "ready"
        ready.unlink(missing_ok=True)
        command = [str(PROGRAMS / "daggyr-server"), "--config", str(self._folder / "server.toml"), "--tracker", self._tracker]
        started = time.perf_counter()
        self._process = subprocess.Popen([*command, "--listen", self.address, "--ready-file", str(ready), "--log-level", "error"])
        while not ready.exists():
            if self._process.poll() is not None:
                raise SystemExit(f"daggyr-server ended with {self._process.returncode}")
            time.sleep(0.002)
        return time.perf_counter() - started

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def daggyr(self, *arguments: str) -> dict[str, object]:
        """What a command prints as JSON."""
        command = [str(PROGRAMS / "daggyr"), "--server", self.address, "--output", "json", *arguments]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found: dict[str, object] = json.loads(printed)
        return found


def expanded(count: int) -> Spec:
    values = [str(number) for number in range(count // 2)]
    task = {"details": {"command": ["/bin/true", "{{N}}"]}, "parameters": {"{{N}}": values}}
    return {"tasks": {"a": task, "b": {**task, "pool": "waits"}}}


def plain(count: int) -> Spec:
    def task(number: int) -> Spec:
        return {"details": {"command": ["/bin/true"]}, **({"pool": "waits"} if number % 2 else {})}

    return {"tasks": {f"t{number}": task(number) for number in range(count)}}


def chained(count: int) -> Spec:
    """Ten thousand chains; what waits is the later half of each."""
    width = min(10_000, count)

    def task(number: int) -> Spec:
        children = [f"t{number + width}"] if number + width < count else []
        return {
            "details": {"command": ["/bin/true"]},
            "children": children,
            **({"pool": "waits"} if number >= count // 2 else {}),
        }

    return {"tasks": {f"t{number}": task(number) for number in range(count)}}


def half_done(folder: Path, coordinator: Coordinator, spec: Spec, count: int) -> None:
    """Submit a run and kill the coordinator when half of its tasks are COMPLETED."""
    (folder / "spec.json").write_text(json.dumps(spec))
    coordinator.start()
    command = [str(PROGRAMS / "daggyr-agent"), "--coordinator", coordinator.address, "--noop", "--pool", "done"]
    agent = subprocess.Popen(
        [*command, "--name", "noop", "--resource", "cores=64", "--state-dir", str(folder / "agent"), "--log-level", "error"]
    )
    coordinator.daggyr("submit", str(folder / "spec.json"))
    while completed(coordinator) < count // 2:
        time.sleep(0.05)
    agent.terminate()
    agent.wait()
    coordinator.kill()


def completed(coordinator: Coordinator) -> int:
    while True:
        run = coordinator.daggyr("show", "1")
        if "being restored" not in str(run["notes"]):
            break
        time.sleep(0.02)
    states = run["task_states"]
    assert isinstance(states, dict)
    return int(states.get("COMPLETED", 0))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures how long a coordinator takes to go on with a large run.")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tracker", help="An empty tracker instead of a sqlite file; for one kind of run only.")
    options = parser.parse_args()
    kinds: dict[str, Callable[[int], Spec]] = {"expanded": expanded, "plain": plain, "chained": chained}
    if options.tracker:
        kinds = {"chained": chained}
    print(f"{options.tasks:,} tasks, half of them done, after kill -9")
    for name, spec in kinds.items():
        folder = Path(tempfile.mkdtemp(prefix="daggyr-bench-"))
        empty = Coordinator(folder, f"sqlite:{folder}/empty.db")
        coordinator = Coordinator(folder, options.tracker or f"sqlite:{folder}/state.db")
        half_done(folder, coordinator, spec(options.tasks), options.tasks)
        nothing, starts, answers = [], [], []
        for _ in range(options.rounds):
            nothing.append(empty.start())
            empty.kill()
            starts.append(coordinator.start())
            before = time.perf_counter()
            assert completed(coordinator) >= options.tasks // 2, "something was lost"
            answers.append(time.perf_counter() - before)
            coordinator.kill()
        start, base, answer = map(statistics.median, (starts, nothing, answers))
        print(f"  {name:<10}{start:6.2f} s to start, {start - base:5.2f} s of that to recover; it is back after {answer:.2f} s")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
