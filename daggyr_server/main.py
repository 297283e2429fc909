"""`daggyr-server`: the coordinator as a program.

Reads the configuration, opens the tracker, makes the machine, the executors and the listener, wires them together, and takes them
apart again in the other order when it is told to end. Nothing is decided here.
"""

from __future__ import annotations

import daggyr_server.quiet_grpc  # noqa: F401  # before whatever else loads grpc

# isort: split
import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import click
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from msgspec.structs import replace

from daggyr.channel import AddressError
from daggyr.checked import ConfigurationError, Fault
from daggyr.hangup import Terminal
from daggyr.logs import log_to_stderr
from daggyr.private_folder import is_abandoned
from daggyr.standard_streams import say
from daggyr.tokens import TokenError, make_token, token_file
from daggyr.v1 import agents_pb2, runs_pb2
from daggyr.v1.agents_pb2_grpc import add_AgentsServicer_to_server
from daggyr.v1.runs_pb2_grpc import add_RunsServicer_to_server
from daggyr.whole_file import write_whole
from daggyr_server import __version__
from daggyr_server.api.asking import Limits
from daggyr_server.api.listening.authentication import Tokens
from daggyr_server.api.listening.binding import ListenerError
from daggyr_server.api.listening.listener import Listener
from daggyr_server.api.listening.renewal import Renewable, Renewal
from daggyr_server.api.runs import RunsService
from daggyr_server.chosen_path import ChosenPath
from daggyr_server.config import Configuration, Server, load
from daggyr_server.core.machine import Machine
from daggyr_server.descriptors import take_all
from daggyr_server.driver.changes import Changes
from daggyr_server.driver.errors import Closing
from daggyr_server.driver.generators import Generators
from daggyr_server.driver.loop import Driver
from daggyr_server.executors.agents.executor import AgentExecutor
from daggyr_server.executors.agents.pins import AgentPins, Keep, PinsClosed
from daggyr_server.executors.agents.servicer import AgentSessions
from daggyr_server.executors.base import Executor, ExecutorError, SettingsError
from daggyr_server.executors.context import ExecutorContext, PoolAccess, check_patterns
from daggyr_server.executors.loader import find_executor
from daggyr_server.spec import PoolLimits
from daggyr_server.trackers.base import TrackerError
from daggyr_server.trackers.loader import make_tracker

log = logging.getLogger("daggyr_server")

LEVELS = ("debug", "info", "warning", "error")
STOP_SECONDS = 2.0  # for calls under way when the server ends
# Attempts and messages come and go in cycles of none: looking for cycles among them is time lost, and a pause for callers.
GC_THRESHOLD = 50_000
# How long a thread that has made something durable may wait for the interpreter; the default is ten times that.
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
@click.option("--lifeline", type=int, metavar="FD", help="An inherited pipe: end when its other end closes.")
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
    lifeline: int | None,
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
        configuration = load(config, listen=listen, tracker=tracker, workers=workers)
        take_all()
        if no_metrics:
            configuration = replace(configuration, server=replace(configuration.server, metrics=None))
        asyncio.run(_serve(configuration, ready_file, lifeline, log_level, pass_environment))
    except (ConfigurationError, ExecutorError, ListenerError, TokenError, TrackerError, AddressError) as error:
        say(f"daggyr-server: {error}")
        sys.exit(2)
    finally:
        if private_folder is not None and is_abandoned(private_folder):
            shutil.rmtree(private_folder, ignore_errors=True)


async def _serve(
    configuration: Configuration, ready_file: Path | None, lifeline: int | None, log_level: str, pass_environment: tuple[str, ...]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # a shell's `&` in a script means it
            loop.add_signal_handler(number, stop.set)
    if lifeline is not None:
        loop.add_reader(lifeline, stop.set)
    hang_up = asyncio.Event()
    terminal = Terminal()
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup(1) means it
        loop.add_signal_handler(signal.SIGHUP, lambda: (stop if terminal.is_gone() else hang_up).set())
    sys.setswitchinterval(SWITCH_SECONDS)
    async with coordinator(configuration, log_level, pass_environment) as (listener, address, driver, renewal):
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 20)
        if ready_file is not None:
            _write_ready(ready_file, address)
        _greet(configuration, address)
        stopping = asyncio.create_task(stop.wait())
        failing = [asyncio.create_task(driver.ended()), asyncio.create_task(listener.ended())]
        renewing = asyncio.create_task(_renew(renewal, hang_up))
        watching = asyncio.create_task(renewal.watch())
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
    """Read tokens and certificates again each time that it is asked for."""
    while True:
        await hang_up.wait()
        hang_up.clear()
        await renewal.read_again()


@contextlib.asynccontextmanager
async def coordinator(
    configuration: Configuration, log_level: str = "info", pass_environment: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Listener, str, Driver, Renewal]]:
    """A whole coordinator in this event loop: yields the listener and its real address, the driver and what reads secrets
    again, once connections are accepted.

    Raises what its parts raise if they cannot be used. When the context ends, everything it started has ended.
    """
    server = configuration.server
    tracker = make_tracker(server.tracker)
    opened = await tracker.open()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(tracker.close)
        access, pins = PoolAccess(), AgentPins()
        context = ExecutorContext(
            access=access,
            tracker_id=opened.tracker_id,
            epoch=opened.epoch,
            lease=server.lease,
            heartbeat=server.heartbeat,
            grace=server.kill_grace,
            log_level=log_level,
            pass_environment=pass_environment,
            pins=pins,
        )
        limits: dict[str, PoolLimits] = {}
        machine = Machine(configuration.pools, next_run_id=opened.next_run_id)
        driver = Driver(machine, tracker, Changes(opened.epoch), Generators(limits), time.time, durable=opened.durable)
        pins.open(await tracker.pins(), _keep_pin(driver))
        stack.push_async_callback(driver.close)  # unless all goes well: then it ends together with the listener
        executors = _executors(configuration, driver, context)
        limits.update(
            {
                name: PoolLimits(
                    largest=executor.largest(),
                    setting=f"`{executor.sized_by}` of [pools.{name}]",
                    sets="cores" if executor.sized_by == "workers" else None,
                )
                for name, executor in executors.items()
            }
        )
        tokens = _tokens(server)
        listeners: list[Renewable] = []
        if server.metrics is not None:
            listeners.append(await _serve_metrics(stack, server.metrics, configuration, tokens, driver))
        listener = Listener(server.listen, tokens=tokens, tls=server.tls)
        service = RunsService(
            driver,
            Limits(
                pools=limits,
                executors={name: pool.executor for name, pool in configuration.pools.items()},
                default_pool=configuration.default_pool,
                max_bytes=server.max_run_bytes,
                max_tasks=server.max_run_tasks,
                max_arriving_bytes=server.max_arriving_bytes,
            ),
        )
        await _add_services(listener, service, executors, context)
        await driver.start(executors)
        stack.push_async_callback(_stop, listener, driver)
        address = await listener.start()

        def open_access(tokens: Tokens | None) -> None:
            token = tokens.agent if tokens is not None and _is_tcp(address) else None
            access.open(address, token=token, tls=server.tls is not None, insecure=server.insecure)

        open_access(tokens)
        yield listener, address, driver, Renewal([*listeners, listener], lambda: _tokens(server), server.tls, open_access)


async def _serve_metrics(
    stack: contextlib.AsyncExitStack, address: str, configuration: Configuration, tokens: Tokens | None, driver: Driver
) -> Renewable:
    """Serve metrics until the stack is left. Before anything else is started: an address in use then stops nothing halfway."""
    # Those without metrics need not wait for the library to load.
    from daggyr_server.api.metrics.figures import figures
    from daggyr_server.api.metrics.scrapes import PATH, Scrapes

    executors = {name: pool.executor for name, pool in configuration.pools.items()}
    scrapes = Scrapes(address, lambda lag: figures(driver, executors, lag), tokens=tokens, tls=configuration.server.tls)
    stack.push_async_callback(scrapes.stop)
    address = await scrapes.start()
    scheme = "https://" if configuration.server.tls is not None else "http://"
    log.info("metrics at %s%s%s", scheme if _is_tcp(address) else "", address, PATH if _is_tcp(address) else "")
    return scrapes


def _keep_pin(driver: Driver) -> Keep:
    async def keep(agent_id: str, name: str, digest: bytes | None) -> None:
        try:
            await driver.keep_pin(agent_id, name, digest)
        except Closing as closing:
            raise PinsClosed(str(closing)) from None

    return keep


def _is_tcp(address: str | None) -> bool:
    return address is not None and not address.startswith("unix:")


async def _stop(listener: Listener, driver: Driver) -> None:
    """End calls and driver together: agents' sessions end with the driver, and calls under way get their answers from it."""
    await asyncio.gather(listener.stop(STOP_SECONDS), driver.close())


def _executors(configuration: Configuration, driver: Driver, context: ExecutorContext) -> dict[str, Executor]:
    """The pools' executors, all faults of their settings together."""
    faults: list[Fault] = []
    executors: dict[str, Executor] = {}
    for name, pool in configuration.pools.items():
        kind = find_executor(pool.executor)
        settings = pool.check(kind.Settings, faults)
        if settings is not None:
            try:
                reports = driver.reports(name, mend=not issubclass(kind, AgentExecutor))  # agents' words are checked in sessions
                executors[name] = kind(name, settings, reports, dataclasses.replace(context, grace=pool.kill_grace))
            except SettingsError as error:
                faults.append(Fault(f"pools.{name}", str(error)))
    if faults:
        raise ConfigurationError(faults, configuration.source)
    return executors


def _tokens(server: Server) -> Tokens | None:
    if not _is_tcp(server.listen) and not _is_tcp(server.metrics):
        return None
    return Tokens(
        client=make_token("client", server.client_token_file or token_file("client", os.environ)),
        agent=make_token("agent", server.agent_token_file or token_file("agent", os.environ)),
    )


async def _add_services(listener: Listener, runs: RunsService, executors: dict[str, Executor], context: ExecutorContext) -> None:
    # A local pool is one of agents too, but of its own only, on a socket of its own.
    agents = [executor for executor in executors.values() if isinstance(executor, AgentExecutor) and executor.on_listener]
    server = listener.server
    add_RunsServicer_to_server(runs, server)
    add_AgentsServicer_to_server(AgentSessions(agents, context.pins, listener.refused), server)
    names = [
        runs_pb2.DESCRIPTOR.services_by_name["Runs"].full_name,
        agents_pb2.DESCRIPTOR.services_by_name["Agents"].full_name,
    ]
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    for name in ("", *names):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def _write_ready(path: Path, address: str) -> None:
    write_whole(path, f"{address}\n".encode(), mode=0o666)


def _greet(configuration: Configuration, address: str) -> None:
    pools = ", ".join(f"{name} ({pool.executor})" for name, pool in configuration.pools.items())
    tracker = configuration.server.tracker.partition(":")[0]
    keep = "; state is lost when it ends: --tracker sqlite:PATH keeps it" if tracker == "memory" else ""
    log.info("listening on %s; pools: %s; tracker: %s%s", address, pools, tracker, keep)


if __name__ == "__main__":
    main()
