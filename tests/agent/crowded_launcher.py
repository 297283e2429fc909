"""Many threads that start processes through one launcher, each with files under descriptors of its own: a program for a test.

    python crowded_launcher.py THREADS STARTS FOLDER

Each thread has STARTS processes write what only they know to both streams, one of four what it reads from its standard input,
and compares every byte. Most of the files' descriptors are the lowest that are free, so that pairs of them come again in other
threads; the others lie anywhere up to what the system allows, so that there are thousands of pairs. It prints how many starts and
how many different pairs there were, after the first difference if there is one, and then exits with 1. A test runs it with a C
library that checks its memory.
"""

from __future__ import annotations

import fcntl
import os
import random
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from daggyr_agent.process import Launcher, Outputs, reap


class Crowd:
    def __init__(self, folder: Path, highest: int) -> None:
        self.folder = folder
        self.highest = highest
        self.launcher = Launcher(os.environb, "crowd")
        self.pairs: set[tuple[int, int]] = set()
        self.wrong: list[str] = []

    def work(self, thread: int, starts: int) -> None:
        chance = random.Random(thread)
        kept: Outputs | None = None  # files serve several processes, as an agent's do when nothing was written
        for count in range(starts):
            if kept is None:
                kept = Outputs(self._file(f"{thread}.out", chance), self._file(f"{thread}.err", chance))
            self.pairs.add((kept.stdout, kept.stderr))
            word = f"{thread}-{count}"
            stdin = word if count % 4 == 0 else None
            script = "cat; echo $0 >&2" if stdin is not None else "echo $0; echo $0 >&2"
            folder = os.fsencode(self.folder) if count % 5 == 0 else b""
            pid = self.launcher.start(
                [b"/bin/sh", b"-c", script.encode(), word.encode()], {}, working_directory=folder, stdin=stdin, outputs=kept
            )
            end = reap(pid)
            out, err = (os.pread(descriptor, 1000, 0).decode() for descriptor in (kept.stdout, kept.stderr))
            if (end.exit_code, out.rstrip("\n"), err) != (0, word, f"{word}\n"):
                self.wrong.append(f"{word} ended with {end.exit_code}, {end.signal} and wrote {out!r} and {err!r}")
                return
            if chance.random() < 0.3:
                os.ftruncate(kept.stdout, 0)
                os.ftruncate(kept.stderr, 0)
            else:
                os.close(kept.stdout)
                os.close(kept.stderr)
                kept = None

    def _file(self, name: str, chance: random.Random) -> int:
        path = self.folder / name
        path.unlink(missing_ok=True)
        first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            lowest = 3 if chance.random() < 0.7 else chance.randrange(3, self.highest)
            return fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, lowest)
        finally:
            os.close(first)


def main(threads: int, starts: int, folder: Path) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = min(hard, 10_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    crowd = Crowd(folder, limit - 10 * threads)
    with ThreadPoolExecutor(threads) as pool:
        for worked in [pool.submit(crowd.work, thread, starts) for thread in range(threads)]:
            worked.result()
    print(*crowd.wrong[:1], f"{threads * starts} starts, {len(crowd.pairs)} pairs", sep="\n")
    return 1 if crowd.wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
