"""Plays thousands of cases: `cd tests && ../.venv/bin/python -m model --first 1 --cases 2000`.

It prints what differed and how to play it again, and exits with 1 if anything did.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from support.deployment import Deployment

from model.played import STEPS, World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    parser.add_argument("--first", type=int, default=1, help="the first case's seed")
    parser.add_argument("--cases", type=int, default=1000, help="how many cases, with seeds that follow each other")
    parser.add_argument("--together", type=int, default=50, help="how many take turns on one server, and share its restarts")
    parser.add_argument("--steps", type=int, default=STEPS, help="how many steps a case has")
    options = parser.parse_args()
    began, differed = time.monotonic(), 0
    beyond = options.first + options.cases
    for first in range(options.first, beyond, options.together):
        seeds = range(first, min(first + options.together, beyond))
        with tempfile.TemporaryDirectory(prefix="model-") as folder:
            deployment = Deployment(Path(folder))
            world = World(deployment)
            try:
                found = world.play(seeds, options.steps)
            finally:
                world.close()
                deployment.close()
        differed += len(found)
        for text in found:
            print(
                text, f"  again: --first {first} --cases {len(seeds)} --together {len(seeds)} --steps {options.steps}", sep="\n"
            )
        done = seeds.stop - options.first
        print(f"{done:,} cases, {differed:,} differed, {time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(differed > 0)


if __name__ == "__main__":
    sys.exit(main())
