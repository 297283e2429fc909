"""How fast DaggyR runs tasks, beside what else could run them, in one run on one machine.

    python tests/bench/speed.py [--rounds 3] [--tasks 5000] [--noop 200000]

Three figures: independent `/bin/true` on a local pool of two, a chain of them, and no-op tasks through an agent that does not
fork. Each round measures DaggyR and its peers in turn, on a warm server, from accepted to COMPLETED by the server's own clock;
medians are printed, and ratios to the peers. It asserts nothing: machines are noisy, ratios less so.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measured import TRUE, coordinator, expanded, noop_agent


def seconds(command: list[str], *, stdin: str | None = None, cwd: Path | None = None) -> float:
    """Wall time of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, input=stdin, text=True, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def bare(count: int, slots: int) -> float:
    """Wall time of a loop that keeps `slots` processes running and does nothing else: about the least it can take."""
    started = time.perf_counter()
    running: dict[int, int] = {}
    left = count
    poll = select.epoll()
    while left or running:
        while left and len(running) < slots:
            pid = os.posix_spawn(TRUE, [TRUE], {})
            pidfd = os.pidfd_open(pid)
            poll.register(pidfd, select.EPOLLIN)
            running[pidfd] = pid
            left -= 1
        for pidfd, _ in poll.poll():
            os.waitpid(running.pop(pidfd), 0)
            poll.unregister(pidfd)
            os.close(pidfd)
    poll.close()
    return time.perf_counter() - started


def independent(count: int) -> dict[str, object]:
    return {"tasks": {f"t{number}": {"details": {"command": [TRUE]}} for number in range(count)}}


def chain(count: int) -> dict[str, object]:
    def task(number: int) -> dict[str, object]:
        children = [f"t{number + 1}"] if number + 1 < count else []
        return {"details": {"command": [TRUE]}, "children": children}

    return {"tasks": {f"t{number}": task(number) for number in range(count)}}


def makefile(folder: Path, count: int) -> None:
    targets = " ".join(f"t{number}" for number in range(count))
    (folder / "Makefile").write_text(f".PHONY: all {targets}\nall: {targets}\n{targets}:\n\t@{TRUE}\n")


def measure(rounds: int, candidates: dict[str, Callable[[], float]]) -> dict[str, float]:
    """The median of each candidate, all measured in turn in each round."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            found[name].append(candidate())
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures DaggyR beside its peers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=5_000)
    parser.add_argument("--chain", type=int, default=500)
    parser.add_argument("--noop", type=int, default=200_000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="daggyr-bench-peers-"))
    count, hops = options.tasks, options.chain
    makefile(folder, count)
    with coordinator(config='[pools.default]\nexecutor = "local"\nworkers = 2\n') as server:
        server.run("warm", independent(200))
        candidates: dict[str, Callable[[], float]] = {
            "daggyr": lambda: server.run("independent", independent(count)),
            "xargs -P2": lambda: seconds(["xargs", "-P2", "-n1", TRUE], stdin="x\n" * count),
            "bare loop": lambda: bare(count, 2),
        }
        if shutil.which("make"):
            candidates["make -j2"] = lambda: seconds(["make", "-j2", "-s", "all"], cwd=folder)
        print(f"{count:,} independent {TRUE}, local pool of 2, memory tracker")
        times = measure(options.rounds, candidates)
        for name, taken in times.items():
            print(f"  {name:<12}{count / taken:>10,.0f} tasks/s   daggyr is {taken / times['daggyr']:.2f} times as fast")
        print(f"chain of {hops} {TRUE}")
        times = measure(options.rounds, {"daggyr": lambda: server.run("chain", chain(hops)), "bare loop": lambda: bare(hops, 1)})
        for name, taken in times.items():
            print(f"  {name:<12}{1000 * taken / hops:>10.2f} ms a hop")
    for tracker in ("memory", "sqlite"):
        with coordinator(tracker) as server, noop_agent(server):
            server.run("warm", expanded(2_000))
            print(f"{options.noop:,} no-op tasks through a --noop agent, {tracker} tracker")
            times = measure(options.rounds, {"daggyr": lambda: server.run("noop", expanded(options.noop))})
            print(f"  {'daggyr':<12}{options.noop / times['daggyr']:>10,.0f} tasks/s")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
