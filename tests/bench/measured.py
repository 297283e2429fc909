"""Programs under measurement: a server in a folder of its own, agents that do not fork, and what both cost.

Used by the commands of this folder. Figures are of processes (psutil, /proc), times are the server's own clock.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

PROGRAMS = Path(sys.executable).parent
TRUE = "/bin/true"
AGENTS = '[pools.default]\nexecutor = "agent"\n'
Spec = dict[str, object]


@dataclass(frozen=True)
class Cost:
    """Of a process so far."""

    cpu_seconds: float
    peak_mb: float

    @classmethod
    def of(cls, process: subprocess.Popen[bytes]) -> Cost:
        times = psutil.Process(process.pid).cpu_times()
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return cls(times.user + times.system, peak * 1024 / 1e6)


class Coordinator:
    """A server on a socket of its own, which can be killed and started again."""

    def __init__(self, folder: Path, tracker: str, config: str) -> None:
        self.folder = folder
        self.address = f"unix:{folder}/socket/server.sock"
        self._tracker = tracker
        self.process: subprocess.Popen[bytes]
        (folder / "server.toml").write_text(config)

    def start(self) -> float:
        """Seconds until it takes connections."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        command = [str(PROGRAMS / "daggyr-server"), "--listen", self.address, "--log-level", "error", "--ready-file", str(ready)]
        command += ["--config", str(self.folder / "server.toml"), "--tracker", self._tracker]
        started = time.perf_counter()
        self.process = subprocess.Popen(command)
        while not ready.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"daggyr-server ended with {self.process.returncode}")
            time.sleep(0.002)
        return time.perf_counter() - started

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def cost(self) -> Cost:
        return Cost.of(self.process)

    def daggyr(self, *arguments: str) -> dict[str, object]:
        """What a command prints as JSON."""
        command = [str(PROGRAMS / "daggyr"), "--server", self.address, "--output", "json", *arguments]
        found: dict[str, object] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return found

    def document(self, name: str, spec: Spec) -> str:
        """The path of a file that holds a specification."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(spec))
        return str(path)

    def run(self, name: str, spec: Spec) -> float:
        """Seconds from accepted to COMPLETED."""
        return took(self.daggyr("submit", "--watch", self.document(name, spec)))


def took(run: dict[str, object]) -> float:
    """Seconds from accepted to COMPLETED, of a run as commands print it."""
    assert run["state"] == "COMPLETED", run
    submitted, stopped = (datetime.fromisoformat(str(run[name])) for name in ("submit_time", "stop_time"))
    return (stopped - submitted).total_seconds()


@contextmanager
def coordinator(tracker: str = "memory", config: str = AGENTS) -> Iterator[Coordinator]:
    """A running server; `tracker` may be `sqlite`, for a file of its own."""
    folder = Path(tempfile.mkdtemp(prefix="daggyr-bench-"))
    server = Coordinator(folder, f"sqlite:{folder}/state.db" if tracker == "sqlite" else tracker, config)
    server.start()
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def noop_agent(server: Coordinator, name: str = "noop", *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that answers without forking."""
    with agent(server, name, "--noop", "--resource", "cores=64", *options) as process:
        yield process


@contextmanager
def agent(server: Coordinator, name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent."""
    command = [str(PROGRAMS / "daggyr-agent"), "--coordinator", server.address]
    process = subprocess.Popen(
        [*command, "--name", name, "--state-dir", str(server.folder / name), "--log-level", "error", *options]
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def expanded(count: int) -> Spec:
    """Tasks of one template."""
    values = [str(number) for number in range(count)]
    return {"tasks": {"t": {"details": {"command": [TRUE, "{{N}}"]}, "parameters": {"{{N}}": values}}}}


def layered(count: int, edges: int = 3, width: int = 1000) -> Spec:
    """Distinct tasks with `edges` explicit children each, in layers of `width`."""

    def children(number: int) -> list[str]:
        below = number - number % width + width
        return [f"task-{below + (number + step * 7) % width}" for step in range(edges)] if below + width <= count else []

    return {
        "tasks": {
            f"task-{number}": {"details": {"command": [TRUE, str(number)]}, "children": children(number)}
            for number in range(count)
        }
    }
