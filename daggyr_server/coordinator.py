"""A whole coordinator in one event loop: tracker, machine, executors, metrics and listener, wired together.

`daggyr-server` (main.py) opens one, and takes it apart again in the other order when it is told to end. Each part is made before
any is started, and the listener is started last, so that nobody is served who could not be answered. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from daggyr.checked import ConfigurationError, Fault
from daggyr.tokens import make_token, token_file
from daggyr.v1 import agents_pb2, runs_pb2
from daggyr.v1.agents_pb2_grpc import add_AgentsServicer_to_server
from daggyr.v1.runs_pb2_grpc import add_RunsServicer_to_server
from daggyr_server.api.listening.authentication import Tokens
from daggyr_server.api.listening.listener import Listener
from daggyr_server.api.listening.renewal import Renewable, Renewal
from daggyr_server.api.runs import RunsService
from daggyr_server.api.servicer import Limits
from daggyr_server.config import Configuration, Server
from daggyr_server.core.machine import Machine
from daggyr_server.driver.careful import unusable
from daggyr_server.driver.changes import Changes
from daggyr_server.driver.clocks import host_clocks
from daggyr_server.driver.driver import Driver
from daggyr_server.driver.errors import Closing
from daggyr_server.driver.generators import Generators
from daggyr_server.executors.agents.executor import AgentExecutor
from daggyr_server.executors.agents.pins import AgentPins, Keep, PinsClosed
from daggyr_server.executors.agents.servicer import AgentSessions
from daggyr_server.executors.base import Executor, SettingsError
from daggyr_server.executors.context import ExecutorContext, PoolAccess
from daggyr_server.executors.loader import find_executor
from daggyr_server.spec import PoolLimits
from daggyr_server.trackers.loader import make_tracker
from daggyr_server.trackers.seen import check_seen

if TYPE_CHECKING:
    from grpc_health.v1.health.aio import HealthServicer

log = logging.getLogger("daggyr_server")

SERVICES = (
    runs_pb2.DESCRIPTOR.services_by_name["Runs"].full_name,
    agents_pb2.DESCRIPTOR.services_by_name["Agents"].full_name,
)
UNDAMAGED = "daggyr.v1.Runs/undamaged"  # what the health check calls the tracker's runs
STOP_SECONDS = 2.0  # for calls under way when the server ends


@dataclass(frozen=True)
class Coordinator:
    """A coordinator that accepts connections."""

    listener: Listener
    address: str  # where it listens, with the real port
    driver: Driver
    renewal: Renewal


@contextlib.asynccontextmanager
async def coordinator(
    configuration: Configuration, log_level: str = "info", pass_environment: tuple[str, ...] = (), *, private: bool = False
) -> AsyncIterator[Coordinator]:
    """A coordinator, once connections are accepted. A `private` one has a single client, and neither health check nor reflection.

    Raises what its parts raise if they cannot be used. When the context ends, everything it started has ended.
    """
    server = configuration.server
    tracker = make_tracker(server.tracker)
    opened = await tracker.open()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(tracker.close)
        check_seen(opened, str(tracker), os.environ)
        access, pins = PoolAccess(), AgentPins()
        context = ExecutorContext(
            access=access,
            tracker_id=opened.tracker_id,
            epoch=opened.epoch,
            life=opened.life,
            lives=opened.lives,
            first_id=opened.first_id,
            lease=server.lease,
            heartbeat=server.heartbeat,
            grace=server.kill_grace,
            log_level=log_level,
            pass_environment=pass_environment,
            pins=pins,
            parting=private or not opened.durable,
        )
        limits: dict[str, PoolLimits] = {}
        machine = Machine(configuration.pools, next_run_id=opened.next_run_id)
        driver = Driver(
            *(machine, tracker, Changes(opened.epoch), Generators(limits), host_clocks),
            durable=opened.durable,
            life=opened.life,
        )
        pins.open(await tracker.pins(), _keep_pin(driver))
        stack.push_async_callback(driver.close)  # If all goes well, it ends together with the listener: see _stop.
        executors = _executors(configuration, driver, context)
        limits.update({name: _limits(name, executor) for name, executor in executors.items()})
        tokens = read_tokens(server)
        listeners: list[Renewable] = []
        if server.metrics is not None:
            listeners.append(await _serve_metrics(stack, server.metrics, configuration, tokens, driver))
        listener = Listener(server.listen, tokens=tokens, tls=server.tls)
        _add_services(listener, _runs_service(configuration, driver, limits), executors, context, driver.restored)
        checks = await _add_probes(listener) if not private else None
        await driver.start(executors)
        stack.push_async_callback(_stop, listener, driver)
        if checks is None:
            await driver.restored()  # its only client asks for the run that it goes on with
        else:
            await stack.enter_async_context(_checked(checks, driver))
        address = await listener.start()

        def open_access(tokens: Tokens | None) -> None:
            token = tokens.agent if tokens is not None and is_tcp(address) else None
            access.open(address, token=token, tls=server.tls is not None, insecure=server.insecure)

        open_access(tokens)
        renewal = Renewal([*listeners, listener], lambda: read_tokens(server), server.tls, open_access)
        yield Coordinator(listener, address, driver, renewal)


def is_tcp(address: str | None) -> bool:
    """Whether an address is there and is no unix socket's."""
    return address is not None and not address.startswith("unix:")


def read_tokens(server: Server) -> Tokens | None:
    """The tokens in the files, which are made if they are not there; None where only unix sockets listen. Raises TokenError."""
    if not is_tcp(server.listen) and not is_tcp(server.metrics):
        return None
    return Tokens(
        client=make_token("client", server.client_token_file or token_file("client", os.environ)),
        agent=make_token("agent", server.agent_token_file or token_file("agent", os.environ)),
    )


async def _serve_metrics(
    stack: contextlib.AsyncExitStack, address: str, configuration: Configuration, tokens: Tokens | None, driver: Driver
) -> Renewable:
    """Serve metrics until the stack is left. It is started before anything else: an address in use then stops nothing halfway."""
    # A coordinator without metrics need not wait for the library to load.
    from daggyr_server.api.metrics.scrapes import PATH, Scrapes

    scrapes = Scrapes(address, driver.figures, _executor_names(configuration), tokens=tokens, tls=configuration.server.tls)
    stack.push_async_callback(scrapes.stop)
    address = await scrapes.start()
    scheme = "https://" if configuration.server.tls is not None else "http://"
    log.info("metrics at %s%s%s", scheme if is_tcp(address) else "", address, PATH if is_tcp(address) else "")
    return scrapes


def _keep_pin(driver: Driver) -> Keep:
    async def keep(agent_id: str, name: str, digest: bytes | None) -> None:
        try:
            await driver.requests.keep_pin(agent_id, name, digest)
        except Closing as closing:
            raise PinsClosed(str(closing)) from None

    return keep


async def _stop(listener: Listener, driver: Driver) -> None:
    """End calls and driver together: agents' sessions end with the driver, and calls under way get their answers from it."""
    await asyncio.gather(listener.stop(STOP_SECONDS), driver.close())


def _executors(configuration: Configuration, driver: Driver, context: ExecutorContext) -> dict[str, Executor]:
    """The pools' executors. Raises ConfigurationError with the faults of all their settings, and ExecutorError."""
    faults: list[Fault] = []
    executors: dict[str, Executor] = {}
    for name, pool in configuration.pools.items():
        kind = find_executor(pool.executor)
        settings = pool.check(kind.Settings, faults)
        if settings is not None:
            try:
                kind = kind.chosen(settings)
                reports = driver.reports(name, mend=not issubclass(kind, AgentExecutor))  # Sessions check what agents say.
                executors[name] = kind(name, settings, reports, dataclasses.replace(context, grace=pool.kill_grace))
            except SettingsError as error:
                faults.append(Fault(f"pools.{name}", str(error)))
            except Exception as error:
                raise unusable(name, "take its settings", error) from error
    if faults:
        raise ConfigurationError(faults, configuration.source)
    return executors


def _executor_names(configuration: Configuration) -> dict[str, str]:
    return {name: pool.executor for name, pool in configuration.pools.items()}


def _limits(pool: str, executor: Executor) -> PoolLimits:
    """What specifications may ask of a pool. Raises ExecutorError."""
    try:
        largest = executor.largest()
        if largest is not None:
            largest = {name: int(units) for name, units in largest.items()}
    except Exception as error:
        raise unusable(pool, "say what it has at most", error) from error
    return PoolLimits(
        largest=largest,
        setting=f"`{executor.sized_by}` of [pools.{pool}]",
        sets="cores" if executor.sized_by == "workers" else None,
    )


def _runs_service(configuration: Configuration, driver: Driver, pools: dict[str, PoolLimits]) -> RunsService:
    server = configuration.server
    limits = Limits(
        pools=pools,
        executors=_executor_names(configuration),
        default_pool=configuration.default_pool,
        max_bytes=server.max_run_bytes,
        max_tasks=server.max_run_tasks,
        max_arriving_bytes=server.max_arriving_bytes,
    )
    return RunsService(driver.requests, driver.reader, driver.changes, limits)


def _add_services(
    listener: Listener,
    runs: RunsService,
    executors: dict[str, Executor],
    context: ExecutorContext,
    ready: Callable[[], Awaitable[object]],
) -> None:
    # A local pool has an agent too, but only its own, on a socket of its own.
    agents = [executor for executor in executors.values() if isinstance(executor, AgentExecutor) and executor.on_listener]
    server = listener.server
    add_RunsServicer_to_server(runs, server)
    add_AgentsServicer_to_server(AgentSessions(agents, context.pins, listener.refused, ready), server)


async def _add_probes(listener: Listener) -> HealthServicer:
    """The health check, which is returned, and reflection.

    Their libraries are loaded here, because a server of `daggyr run` starts without them.
    """
    from grpc_health.v1 import health, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, listener.server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), listener.server)
    return checks


@contextlib.asynccontextmanager
async def _checked(checks: HealthServicer, driver: Driver) -> AsyncIterator[None]:
    """Have the health check tell the truth while this lasts.

    The server as a whole serves from its first moment: it answers, takes runs, and says what is being restored, so that it must
    be neither ended nor cut off. Its services are said to serve once all runs are back. What is called UNDAMAGED serves while no
    run is known to be damaged in the tracker.
    """
    from grpc_health.v1.health_pb2 import HealthCheckResponse

    async def tell() -> None:
        await driver.restored()
        for name in SERVICES:
            await checks.set(name, HealthCheckResponse.SERVING)

    async def tell_damage() -> None:
        damage = driver.reader.damage
        while True:
            damage.changed.clear()
            await checks.set(UNDAMAGED, HealthCheckResponse.NOT_SERVING if len(damage) else HealthCheckResponse.SERVING)
            await damage.changed.wait()

    await checks.set("", HealthCheckResponse.SERVING)
    for name in SERVICES:
        await checks.set(name, HealthCheckResponse.SERVING if driver.is_restored else HealthCheckResponse.NOT_SERVING)
    telling = [asyncio.create_task(each, name="health") for each in (tell(), tell_damage())]
    try:
        yield
    finally:
        for each in telling:
            each.cancel()
        await asyncio.gather(*telling, return_exceptions=True)
