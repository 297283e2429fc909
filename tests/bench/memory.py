"""How much memory a server has while 10,000 short runs come and go: ten samples, and a line through them.

    python tests/bench/memory.py [--runs 10000] [--tracker postgresql://...]

A run has three tasks, which an executor that starts nothing completes at once; each is waited for, and every tenth is looked at
once more after it has left memory. The samples are of VmRSS (proc_pid_status(5)). A server keeps the last 200 ended runs, the
last changes of 1,000 and, with sqlite, 8 MiB of pages, which about 8,000 of these runs fill: the first sample is taken after
those. The aim is a line without a slope. It asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from daggyr.client import Client

PROGRAMS = Path(sys.executable).parent
CONFIG = '[server]\nlisten = "unix:{folder}/server.sock"\ntracker = "{tracker}"\n[pools.default]\nexecutor = "noop"\n'
SAMPLES = 10
AT_ONCE = 20
WARM = 9_000  # runs before the first sample
TASKS = {
    "a": {"details": {"command": ["a"]}, "children": ["b", "c"]},
    **{name: {"details": {"command": [name]}} for name in "bc"},
}


def resident(pid: int) -> int:
    """The memory of a process, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def slope(samples: list[tuple[int, int]]) -> float:
    """That of the line with the least squares, in KiB a run."""
    count = len(samples)
    runs, sizes = sum(run for run, _ in samples) / count, sum(size for _, size in samples) / count
    across = sum((run - runs) ** 2 for run, _ in samples)
    return sum((run - runs) * (size - sizes) for run, size in samples) / across


async def come_and_go(client: Client, number: int) -> None:
    document = io.BytesIO(json.dumps({"tags": {"number": str(number)}, "tasks": TASKS}).encode())
    run_id = await client.submit_document(document)
    await client.wait(run_id)
    if number % 10 == 0 and run_id > 500:
        await client.first_tasks(run_id - 400, 10)


async def measure(address: str, pid: int, runs: int) -> list[tuple[int, int]]:
    samples: list[tuple[int, int]] = []
    async with Client(address) as client:
        for start in range(0, WARM, AT_ONCE):
            await asyncio.gather(*(come_and_go(client, number) for number in range(start, start + AT_ONCE)))
        step = runs // SAMPLES
        for sample in range(SAMPLES):
            for start in range(0, step, AT_ONCE):
                await asyncio.gather(*(come_and_go(client, number) for number in range(start, start + AT_ONCE)))
            samples.append(((sample + 1) * step, resident(pid)))
            print(f"  after {samples[-1][0]:>6,} runs {samples[-1][1] / 1024:8.1f} MiB", flush=True)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the memory of a server over many short runs.")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--tracker", help="An empty tracker instead of a sqlite file.")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="daggyr-bench-"))  # mkdtemp makes it private
    ready = folder / "ready"
    (folder / "server.toml").write_text(CONFIG.format(folder=folder, tracker=options.tracker or f"sqlite:{folder}/state.db"))
    command: list[str | Path] = [PROGRAMS / "daggyr-server", "--config", folder / "server.toml", "--ready-file", ready]
    command += ["--log-level", "error"]
    server = subprocess.Popen(command)
    try:
        while not ready.exists():
            if server.poll() is not None:
                raise SystemExit(f"daggyr-server ended with {server.returncode}")
            time.sleep(0.01)
        samples = asyncio.run(measure(ready.read_text().strip(), server.pid, options.runs))
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"  the line through them rises by {slope(samples) * 1024:.1f} bytes a run")


if __name__ == "__main__":
    main()
