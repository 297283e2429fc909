"""Breaks everything at random, for as long as it is told to.

    python tests/faults/soak.py --minutes 60 [--seed 1] [--tracker sqlite|postgresql]

Round after round: a coordinator, three agents and a run of a few thousand tasks, while coordinators and agents are killed and
stopped and Postgres goes away, each time when a random number of tasks is done. Then the run must be COMPLETED, with each task
done once, or again only where an agent died with it. A round's seed is printed before it begins: `--seed` with it begins there.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent))

from farm import LEDGER, Farm, layers
from support.deployment import SHORT_LEASE, Deployment, Program
from support.postgres_server import PostgresServer, postgres_server

NAMES = ("one", "two", "three")
FAULTS = 15  # a round


class Round:
    """One run with its faults. All that is random comes from the round's seed."""

    def __init__(self, farm: Farm, seed: int, postgres: PostgresServer | None) -> None:
        self.farm = farm
        self.random = Random(seed)
        self.postgres = postgres
        self.agents: dict[str, Program] = {}
        self.killed: set[str] = set()

    def run(self) -> str:
        """Let the run pass through its faults; returns what was done. Raises AssertionError at a fault of DaggyR."""
        farm, random = self.farm, self.random
        script = random.choice([LEDGER, f"{LEDGER}; sleep 0.02", f"head -c 20000 /dev/zero; {LEDGER}"])
        tasks = layers(random.randrange(500, 3000), random.choice([5, 50, 500]), script)
        farm.start()
        self.start_agents()
        run_id = farm.deployment.submit(tasks)
        faults: list[Callable[[], None]] = [self.kill_coordinator] * 4 + [self.stop_coordinator, self.kill_agent, self.stop_agent]
        if self.postgres is not None:
            faults += [self.lose_postgres]
        done = []
        for moment in farm.moments(random, FAULTS, of=len(tasks)):
            farm.wait_for(moment)
            fault = random.choice(faults)
            fault()
            done.append(fault.__name__)
        self.start_agents()
        run = farm.deployment.watch(run_id)
        assert run["task_states"] == {"COMPLETED": len(tasks)}, run
        if self.killed:
            farm.assert_lost_with(self.killed, run_id, tasks)
        else:
            farm.assert_each_once(run_id, tasks)
        return f"{len(tasks):,} tasks; " + ", ".join(f"{done.count(name)} {name}" for name in sorted(set(done)))

    def start_agents(self) -> None:
        missing = [name for name in NAMES if name not in self.agents]
        self.agents |= dict(zip(missing, self.farm.agents(*missing), strict=True))

    def kill_coordinator(self) -> None:
        self.farm.kill_and_start()

    def stop_coordinator(self) -> None:
        assert self.farm.coordinator.end() == 0
        self.farm.start()

    def kill_agent(self) -> None:
        self._end_agent(signal.SIGKILL)

    def stop_agent(self) -> None:
        self._end_agent(signal.SIGTERM)

    def _end_agent(self, how: signal.Signals) -> None:
        name = self.random.choice(sorted(self.agents))
        self.agents.pop(name).end(how)
        self.killed.add(name)  # its attempts are LOST in either case
        if len(self.agents) == 1 or self.random.random() < 0.5:
            self.start_agents()

    def lose_postgres(self) -> None:
        assert self.postgres is not None
        self.random.choice([self.postgres.stop, self.postgres.kill])()
        self.postgres.start()


@contextmanager
def deployment() -> Iterator[Deployment]:
    with tempfile.TemporaryDirectory(prefix="daggyr-soak-") as folder:
        made = Deployment(Path(folder))
        try:
            yield made
        except BaseException:
            print(made.logs(), file=sys.stderr)
            raise
        finally:
            made.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Breaks everything at random.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tracker", choices=("sqlite", "postgresql"), default="sqlite")
    options = parser.parse_args()
    until, seed = time.monotonic() + 60 * options.minutes, options.seed
    with ExitStack() as stack:
        postgres = stack.enter_context(postgres_server()) if options.tracker == "postgresql" else None
        while time.monotonic() < until:
            print(f"seed {seed}: ", end="", flush=True)
            tracker = "sqlite:"
            if postgres is not None:
                postgres.execute(f"DROP DATABASE IF EXISTS soak_{seed} WITH (FORCE)", f"CREATE DATABASE soak_{seed}")
                tracker = postgres.url(f"soak_{seed}")
            with deployment() as made:
                if postgres is None:
                    tracker = f"sqlite:{made.folder}/state.db"
                print(Round(Farm(made, tracker, SHORT_LEASE), seed, postgres).run())
            seed += 1
    print("nothing was lost")


if __name__ == "__main__":
    main()
