"""Breaks everything at random, for as long as it is told to.

    python tests/faults/soak.py --minutes 60 [--seed 1] [--tracker sqlite|postgresql] [--without clocks] [--keep FOLDER]

Round after round: a coordinator, three agents, a local pool and a few runs of some hundred tasks. While they work, whatever can
break does, and people ask for whatever they may (soaking/ has both). Then everything is mended, and the verdict compares what the
tracker says with what tasks wrote into a ledger. A round's seed is printed before it begins: `--seed` with it begins there. The
logs of a round that fails are kept in `--keep`, and the next one begins. SIGTERM ends the soak after its round, SIGINT at once;
both tell the totals. The exit code is 1 if anything was lost or false.

It needs root (small disks are mounted) and the Debian packages `gcc` and `libc6-dev` and, for --tracker postgresql, `postgresql`.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from soaking.broken_clocks import PACKAGE, ClockedDeployment, compiler
from soaking.faults import CORES, Memory
from soaking.judged import Verdict
from soaking.round import Round
from support.postgres_server import PostgresServer, postgres_server
from support.small_disk import SmallDisk, small_disk

AGENTS_DISK = "size=96m,nr_inodes=20000"
TRACKERS_DISK = "size=400m"


class Soak:
    """Many rounds, and their totals."""

    def __init__(self, postgres: PostgresServer | None, without: frozenset[str], keep: Path) -> None:
        self.postgres, self.without, self.keep = postgres, without, keep
        self.total, self.failed, self.rounds = Verdict(), list[int](), 0
        self.memory = Memory()
        self.ends: list[float] = []  # what coordinators had in memory at the ends of their lives, the median of each round

    def round(self, seed: int) -> None:
        began = time.monotonic()
        print(f"seed {seed} begins", flush=True)
        with tempfile.TemporaryDirectory(prefix="daggyr-soak-") as folder, ExitStack() as stack:
            made = ClockedDeployment(Path(folder))
            made.clocked = "clocks" not in self.without
            disks = {name: stack.enter_context(small_disk(made.folder / "disks" / name, AGENTS_DISK)) for name in CORES}
            tracker, tracker_disk = self._tracker(made, seed, stack)
            one = Round(made, tracker, seed, disks, tracker_disk, self.postgres, self.without)
            faults: list[str] = []
            try:
                verdict = one.run()
                self.total.add(verdict)
                faults = verdict.lost + verdict.false
                print(f"seed {seed}: {verdict.told()}; {time.monotonic() - began:.0f} s", flush=True)
                print("    " + ", ".join(f"{count} {name}" for name, count in sorted(verdict.done.items())), flush=True)
            except Exception:
                faults = [traceback.format_exc()]
            finally:  # an interrupted round, too, leaves nothing behind
                try:
                    made.close()
                except Exception as error:
                    faults.append(f"{error}")
            self.rounds += 1
            if faults:
                self._failed(seed, faults, one)
            self.memory.starts += one.memory.starts
            self.memory.ends += one.memory.ends
            self.ends.append(statistics.median(one.memory.ends or [0]))

    def _tracker(self, made: ClockedDeployment, seed: int, stack: ExitStack) -> tuple[str, SmallDisk | None]:
        if self.postgres is None:
            disk = stack.enter_context(small_disk(made.folder / "disks" / "tracker", TRACKERS_DISK))
            return f"sqlite:{disk.folder}/state.db", disk
        self.postgres.execute(f"DROP DATABASE IF EXISTS soak_{seed} WITH (FORCE)", f"CREATE DATABASE soak_{seed}")
        return self.postgres.url(f"soak_{seed}"), None

    def _failed(self, seed: int, faults: list[str], one: Round) -> None:
        self.failed.append(seed)
        where = self.keep / f"seed-{seed}"
        where.mkdir(parents=True, exist_ok=True)
        text = "\n".join(faults)
        (where / "faults").write_text(text)
        (where / "did").write_text("\n".join(one.did))
        (where / "logs").write_text(one.deployment.logs())
        (where / "ledger").write_text(one.deployment.read("ledger"))
        (where / "plans").write_bytes(pickle.dumps(one.asked.runs))
        if (one.deployment.folder / "read").exists():  # the tracker as the verdict has read it
            shutil.copytree(one.deployment.folder / "read", where / "tracker", dirs_exist_ok=True)
        print(f"seed {seed} FAILED, see {where}:\n{text[:4000]}", flush=True)

    def told(self) -> str:
        first, last = (f"{each / 1e6:.0f}" for each in (self.ends[0], self.ends[-1]))
        return (
            f"total of {self.rounds} rounds: {self.total.told()}; coordinators: {self.memory.told()}, "
            f"{first} MB at the ends of the first round and {last} MB of the last; rounds that failed: {self.failed or 'none'}"
        )


@contextmanager
def _server(kind: str) -> Iterator[PostgresServer | None]:
    if kind == "sqlite":
        yield None
    else:
        with postgres_server() as server:
            yield server


def main() -> int:
    parser = argparse.ArgumentParser(description="Breaks everything at random.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tracker", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--without", action="append", default=[], help="clocks, disks, or any name of what is broken or asked")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "daggyr-soak", help="logs of failed rounds")
    options = parser.parse_args()
    if "clocks" not in options.without and compiler() is None:
        sys.exit(f"clocks cannot be turned without a C compiler: apt-get install {PACKAGE}, or --without clocks")
    until, seed = time.monotonic() + 60 * options.minutes, options.seed
    enough = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: enough.set())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell, it is ignored
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # programs that are started compile all modules anew otherwise
    with _server(options.tracker) as postgres:
        soak = Soak(postgres, frozenset(options.without), options.keep)
        try:
            soak.round(seed)
            while time.monotonic() < until and not enough.is_set():
                seed += 1
                soak.round(seed)
        except KeyboardInterrupt:
            print("interrupted")
        print(", ".join(f"{count:,} {name}" for name, count in sorted(soak.total.done.items())))
        print(soak.told())
    return 1 if soak.failed else 0


if __name__ == "__main__":
    sys.exit(main())
