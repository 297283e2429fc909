"""Lets a coordinator work until a signal, its lifeline or a failure of its own ends it.

main.py calls `serve` with what it has read, and loads this file only then: it brings everything that a server has, which takes
most of a start, and nobody waits for that who asked for help or chose an option that there is not. Nothing is decided here.
"""

from __future__ import annotations

import daggyr_server.quiet_grpc  # noqa: F401  # before whatever else loads grpc

# isort: split
import asyncio
import gc
import logging
import signal
import sys
from pathlib import Path

from daggyr.address import AddressError
from daggyr.checked import ConfigurationError, Fault
from daggyr.daemon import Terminal
from daggyr.tokens import TokenError
from daggyr.whole_file import write_whole
from daggyr_server.api.listening.binding import ListenerError
from daggyr_server.api.listening.renewal import Renewal
from daggyr_server.config import Configuration
from daggyr_server.coordinator import coordinator
from daggyr_server.executors.base import ExecutorError
from daggyr_server.trackers.base import TrackerError

log = logging.getLogger("daggyr_server")

# What `serve` raises that a person can mend. Its message says how.
FAULTS = (ConfigurationError, ExecutorError, ListenerError, TokenError, TrackerError, AddressError)

# Attempts and messages are in no cycles: looking for cycles among them costs time and makes callers wait.
GC_THRESHOLD = 50_000
# So long may a thread that has made something durable wait for the interpreter. Python's default is ten times as long.
SWITCH_SECONDS = 0.0005


async def serve(
    configuration: Configuration,
    ready_file: Path | None,
    lifeline: int | None,
    log_level: str,
    pass_environment: tuple[str, ...],
    *,
    private: bool,
) -> None:
    """Open a coordinator, write its address to `ready_file`, and return once it has ended. Raises one of `FAULTS`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # A script's `&` starts programs that ignore SIGINT, and means it.
        if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    if lifeline is not None:
        loop.add_reader(lifeline, stop.set)
    hang_up = asyncio.Event()
    terminal = Terminal()
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup(1) starts programs that ignore it, and means it.
        loop.add_signal_handler(signal.SIGHUP, lambda: (stop if terminal.is_gone() else hang_up).set())
    sys.setswitchinterval(SWITCH_SECONDS)
    async with coordinator(configuration, log_level, pass_environment, private=private) as running:
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 20)
        if ready_file is not None:
            _write_ready(ready_file, running.address)
        _greet(configuration, running.address)
        stopping = asyncio.create_task(stop.wait())
        failing = [asyncio.create_task(running.driver.ended()), asyncio.create_task(running.listener.ended())]
        renewing = asyncio.create_task(_renew(running.renewal, hang_up))
        watching = asyncio.create_task(running.renewal.watch())
        done, _ = await asyncio.wait((stopping, *failing), return_when=asyncio.FIRST_COMPLETED)
        pending = {stopping, *failing, renewing, watching} - done
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()
        log.info("ending")
    if lifeline is not None:
        loop.remove_reader(lifeline)


async def _renew(renewal: Renewal, hang_up: asyncio.Event) -> None:
    """Read tokens and certificates again each time that `hang_up` is set."""
    while True:
        await hang_up.wait()
        hang_up.clear()
        await renewal.read_again()


def _write_ready(path: Path, address: str) -> None:
    try:
        write_whole(path, f"{address}\n".encode(), mode=0o666)
    except OSError as error:
        raise ConfigurationError([Fault("--ready-file", f"cannot write {path}: {error.strerror}")], "the command line") from None


def _greet(configuration: Configuration, address: str) -> None:
    pools = ", ".join(f"{name} ({pool.executor})" for name, pool in configuration.pools.items())
    tracker = configuration.server.tracker.partition(":")[0]
    keep = "; state is lost when it ends: --tracker sqlite:PATH keeps it" if tracker == "memory" else ""
    log.info("listening on %s; pools: %s; tracker: %s%s", address, pools, tracker, keep)
