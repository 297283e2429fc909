"""How fast DaggyR runs tasks, beside what else could run them, in one run on one machine.

    python tests/bench/speed.py [--rounds 3] [--tasks 5000] [--noop 200000]

Three figures: independent `/bin/true` on a local pool of two, a chain of them, and no-op tasks through an agent that does not
fork. Each round measures DaggyR and its peers in turn, on a warm server, from accepted to COMPLETED by the server's own clock;
medians are printed, and ratios to the peers. It asserts nothing: machines are noisy, ratios less so.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measured import TRUE, coordinator, expanded, noop_agent
from peers import bare, peers


def independent(count: int) -> dict[str, object]:
    return {"tasks": {f"t{number}": {"details": {"command": [TRUE]}} for number in range(count)}}


def chain(count: int) -> dict[str, object]:
    def task(number: int) -> dict[str, object]:
        children = [f"t{number + 1}"] if number + 1 < count else []
        return {"details": {"command": [TRUE]}, "children": children}

    return {"tasks": {f"t{number}": task(number) for number in range(count)}}


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
    local = '[pools.default]\nexecutor = "local"\nworkers = 2\n'
    with coordinator(config=local) as server, peers(folder) as others:
        server.run("warm", independent(200))
        print(f"{count:,} independent {TRUE}, local pool of 2, memory tracker")
        candidates: dict[str, Callable[[], float]] = {"daggyr": lambda: server.run("independent", independent(count))}
        candidates |= {name: partial(peer, count) for name, peer in others.items()}
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
