"""`daggyr-server`: the coordinator as a program.

Reads the options and the configuration, opens a coordinator (coordinator.py), and lets it work until a signal, its lifeline or a
failure of its own ends it. A fault that a person can mend is one message on stderr and exit code 2. Nothing is decided here.
"""

from __future__ import annotations

import daggyr_server.quiet_grpc  # noqa: F401  # before whatever else loads grpc

# isort: split
import asyncio
import gc
import logging
import shutil
import signal
import sys
from pathlib import Path

import click
from msgspec.structs import replace

from daggyr.channel import AddressError
from daggyr.checked import ConfigurationError, Fault
from daggyr.daemon import Terminal, lifeline_of, log_to_stderr
from daggyr.private_folder import is_abandoned
from daggyr.standard_streams import say
from daggyr.tokens import TokenError
from daggyr.whole_file import write_whole
from daggyr_server import __version__
from daggyr_server.api.listening.binding import ListenerError
from daggyr_server.api.listening.renewal import Renewal
from daggyr_server.chosen_path import ChosenPath
from daggyr_server.config import Configuration, load
from daggyr_server.coordinator import coordinator
from daggyr_server.descriptors import take_all
from daggyr_server.executors.base import ExecutorError
from daggyr_server.executors.context import check_patterns
from daggyr_server.trackers.base import TrackerError

log = logging.getLogger("daggyr_server")

LEVELS = ("debug", "info", "warning", "error")
# Attempts and messages are in no cycles: looking for cycles among them costs time and makes callers wait.
GC_THRESHOLD = 50_000
# So long may a thread that has made something durable wait for the interpreter. Python's default is ten times as long.
SWITCH_SECONDS = 0.0005


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=ChosenPath(), envvar="DAGGYR_CONFIG", help="TOML or JSON file.")
@click.option(
    "--listen", metavar="HOST:PORT", help="Where to listen. Port 0 takes a free one; unix:PATH is a socket.  [127.0.0.1:2503]"
)
@click.option(
    "--tracker",
    metavar="TRACKER",
    envvar="DAGGYR_TRACKER",
    help="Where to keep state: memory, sqlite:PATH or postgresql://...  [memory]",
)
@click.option("--workers", type=click.IntRange(1, 65_536), help="Cores of the local pool.")
@click.option("--ready-file", type=ChosenPath(), help="Write the address here once connections are accepted.")
@click.option("--no-metrics", is_flag=True, help="Serve no metrics, whatever the configuration says.")
@click.option(
    "--pass-environment",
    metavar="NAME",
    multiple=True,
    help="A variable of this program that tasks of local and Slurm pools get, PREFIX_* or * for several; again for each.",
)
@click.option("--lifeline", metavar="FD", help="An inherited pipe: end when its other end closes.")
@click.option("--private-folder", type=click.Path(path_type=Path), hidden=True, help="Remove it in the end if its owner is gone.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@click.version_option(__version__, message="daggyr-server %(version)s")
def main(
    config: Path | None,
    listen: str | None,
    tracker: str | None,
    workers: int | None,
    ready_file: Path | None,
    no_metrics: bool,
    pass_environment: tuple[str, ...],
    lifeline: str | None,
    private_folder: Path | None,
    log_level: str,
) -> None:
    """Run a coordinator. It needs nothing but this:

    \b
        daggyr-server
        daggyr-server --config server.toml --listen 0.0.0.0:2503
    """
    log_to_stderr("daggyr-server", log_level)
    try:
        Path.cwd()
    except FileNotFoundError:
        say("daggyr-server: the folder where this was started is gone, and tasks would start in it: start it elsewhere")
        sys.exit(2)
    try:
        check_patterns(pass_environment)
    except ValueError as error:
        click.echo(f"daggyr-server: --pass-environment: {error}", err=True)
        sys.exit(2)
    try:
        descriptor = None if lifeline is None else _inherited(lifeline)
        configuration = load(config, listen=listen, tracker=tracker, workers=workers)
        take_all()
        if no_metrics:
            configuration = replace(configuration, server=replace(configuration.server, metrics=None))
        private = private_folder is not None
        asyncio.run(_serve(configuration, ready_file, descriptor, log_level, pass_environment, private=private))
    except (ConfigurationError, ExecutorError, ListenerError, TokenError, TrackerError, AddressError) as error:
        say(f"daggyr-server: {error}")
        sys.exit(2)
    finally:
        if private_folder is not None and is_abandoned(private_folder):
            shutil.rmtree(private_folder, ignore_errors=True)


def _inherited(lifeline: str) -> int:
    try:
        return lifeline_of(lifeline)
    except ValueError as error:
        raise ConfigurationError([Fault("--lifeline", str(error))], "the command line") from None


async def _serve(
    configuration: Configuration,
    ready_file: Path | None,
    lifeline: int | None,
    log_level: str,
    pass_environment: tuple[str, ...],
    *,
    private: bool,
) -> None:
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


if __name__ == "__main__":
    main()
