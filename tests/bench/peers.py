"""What else could run the same commands on this machine: each a function of how many, returning seconds. Used by speed.py.

Dask and HyperQueue are measured if they are installed (`pip install "dask[distributed]" hyperqueue`), each with a warm cluster
of its own; how they start one is no part of the figure.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measured import TRUE

Peer = Callable[[int], float]
SLOTS = 2


def seconds(command: list[str], *, stdin: str | None = None, cwd: Path | None = None) -> float:
    """Wall time of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, input=stdin, text=True, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def bare(count: int, slots: int = SLOTS) -> float:
    """A loop that keeps `slots` processes running and does nothing else: about the least it can take."""
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


@contextlib.contextmanager
def peers(folder: Path) -> Iterator[dict[str, Peer]]:
    """Those that are here, by name; `folder` is theirs."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Peer] = {"bare loop": bare}
        found["xargs -P2"] = lambda count: seconds(["xargs", f"-P{SLOTS}", "-n1", TRUE], stdin="x\n" * count)
        if shutil.which("make"):
            found["make -j2"] = lambda count: _make(folder, count)
        for name, begin in (("dask", _dask), ("hyperqueue", _hyperqueue)):
            with contextlib.suppress(ImportError):
                found[name] = stack.enter_context(begin(folder))
        yield found


def _make(folder: Path, count: int) -> float:
    targets = " ".join(f"t{number}" for number in range(count))
    (folder / "Makefile").write_text(f".PHONY: all {targets}\nall: {targets}\n{targets}:\n\t@{TRUE}\n")
    return seconds(["make", f"-j{SLOTS}", "-s", "all"], cwd=folder)


def _true(number: int) -> int:
    return subprocess.run([TRUE], check=True).returncode


@contextlib.contextmanager
def _dask(folder: Path) -> Iterator[Peer]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=SLOTS, threads_per_worker=1, dashboard_address=None, local_directory=str(folder)) as cluster,
        Client(cluster) as client,
    ):

        def run(count: int) -> float:
            started = time.perf_counter()
            client.gather(client.map(_true, range(count), pure=False))
            return time.perf_counter() - started

        run(100)
        yield run


@contextlib.contextmanager
def _hyperqueue(folder: Path) -> Iterator[Peer]:
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig

    with LocalCluster(str(folder / "hyperqueue"), WorkerConfig(cores=SLOTS)) as cluster:
        client = cluster.client()

        def run(count: int) -> float:
            job = Job(default_workdir=folder)
            for _ in range(count):
                job.program([TRUE], stdout=None, stderr=None)
            started = time.perf_counter()
            client.wait_for_jobs([client.submit(job)])
            return time.perf_counter() - started

        run(100)
        yield run
