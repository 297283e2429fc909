"""How long others wait while somebody asks something large of a server: a prober asks small things all the time.

    python tests/bench/waits.py [--tasks 200000] [--tracker sqlite]

A client asks for the pools, for a task of a small run, and to mark that task as what it is already, which goes the way of all
changes; and an agent tells the end of one attempt after the other of another run (prober.py). Beside them, another client
submits, edits, retries, marks and kills runs of `--tasks` tasks, and a generator makes that many. For each it prints how long it
took, the server's processor time, and the longest that the prober waited meanwhile: for what only reads, for what may change
something, and for the acknowledgement of an attempt's end. The aim is 100 ms on a quiet machine. It asserts nothing but that the
calls are granted. `--tracker` is sqlite, or the address of an empty Postgres database.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from measured import AGENTS, PROGRAMS, TRUE, Coordinator, Spec, agent, coordinator, expanded, layered, noop_agent
from prober import POOL, SMALL, Prober

TICKS = 1_000_000  # tasks of the run whose attempts the prober ends; more than it comes to
GENERATORS = "generators"  # a pool whose agent starts processes
CONFIG = AGENTS + "".join(f'[pools.{name}]\nexecutor = "agent"\n' for name in (POOL, GENERATORS))


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
        longest = "".join(f"{1000 * seconds:8.0f} ms " for seconds in self._prober.longest())
        print(f"  {name:<28}{took:8.2f} s {cpu:8.2f} s {longest}", flush=True)


def changed(spec: Spec, name: str) -> Spec:
    """The same with another command in one task."""
    tasks = spec["tasks"]
    assert isinstance(tasks, dict)
    return {"tasks": {**tasks, name: {**tasks[name], "details": {"command": [TRUE, "again"]}}}}


def ended(server: Coordinator, run: str) -> None:
    """Return once a run has ended, however it did."""
    command = [str(PROGRAMS / "daggyr"), "--server", server.address, "watch", run]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def grown(server: Coordinator, waits: Waits, count: int) -> None:
    """A generator makes tasks, which nobody runs."""
    path = server.folder / "printed.json"
    path.write_text(json.dumps({f"g-{number}": {"details": {"command": [TRUE]}} for number in range(count)}))
    details = {"command": ["/bin/cat", str(path)]}
    spec = server.document("generator", {"tasks": {"g": {"details": details, "is_generator": True, "pool": GENERATORS}}})
    with waits.measured("a generator of as many"):
        run = str(server.daggyr("submit", spec)["run_id"])
        while server.daggyr("show", run)["revision"] == 1:
            time.sleep(0.05)
    server.daggyr("kill", run)


def edited_in_flight(server: Coordinator, waits: Waits, count: int) -> None:
    """A run is edited while one of its attempts is in flight."""
    spec = layered(count)
    tasks = spec["tasks"]
    assert isinstance(tasks, dict)
    tasks["held"] = {"details": {"command": ["/bin/sleep", "3600"]}, "pool": GENERATORS}
    run = str(server.daggyr("submit", server.document("held", spec))["run_id"])
    while server.daggyr("show", run)["state"] != "RUNNING":
        time.sleep(0.05)
    waits.during("edit beside an attempt", "edit", run, server.document("edited", changed(spec, f"task-{count // 2}")))
    server.daggyr("kill", run)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures how long others wait while somebody asks something large.")
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--tracker", default="sqlite")
    arguments = parser.parse_args()
    count = arguments.tasks
    print(f"{'':<30}  the call  processor  others read  others change  others report")
    with coordinator(arguments.tracker, CONFIG) as server:
        ticks = server.document("ticks", {"pool": POOL, **expanded(TICKS)})
        with noop_agent(server):
            server.run("small", {"tasks": {"t": {"details": {"command": [TRUE]}}}})
            server.daggyr("submit", ticks)
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
        for name, words in {
            "kill of all its tasks": ("kill", run, "t"),
            "retry of the run": ("retry", run),
            "mark, completed": ("mark", run, "t", "completed"),
            "mark, queued": ("mark", run, "t", "queued"),
            "kill": ("kill", run),
            "delete": ("delete", run),
        }.items():
            waits.during(name, *words)
        with agent(server, GENERATORS, "--pool", GENERATORS):
            grown(server, waits, count)
            edited_in_flight(server, waits, count)
        waits.close()


if __name__ == "__main__":
    main()
