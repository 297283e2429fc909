"""The server's configuration: read, completed and checked before anything is started.

`daggyr-server` calls `load` with its file, if it was given one, and with the values of its command line, which win. All faults
are told together. The tables of pools are read by pool_tables.py. Nothing here opens a socket, a certificate or a tracker, or
reads a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from daggyr.address import DEFAULT_ADDRESS, AddressError, check_address, is_loopback
from daggyr.checked import ConfigurationError, Fault, check, read_table, resolve, suggest
from daggyr.host_resources import usable_cores
from daggyr_server.pool_tables import ConfiguredPool, Grace, default_of, pools_of, size_local_pool

Seconds = Annotated[float, Meta(ge=0.1, le=86_400)]


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """`[server.tls]`: PEM files. With `client_ca`, only clients and agents with a certificate of that authority get in."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """`[server]`. Times are in seconds. Without a token file, the one in the user's state folder is used."""

    listen: str = DEFAULT_ADDRESS  # HOST:PORT, where port 0 means a free one; or unix:PATH with an absolute path
    metrics: str | None = None  # where Prometheus scrapes, an address like that of `listen`; None means nowhere
    tracker: str = "memory"  # `memory`, `sqlite:PATH` with an absolute path, or another tracker's address
    default_pool: str | None = None
    insecure: bool = False  # listen off loopback without TLS
    tls: Tls | None = None
    client_token_file: Path | None = None
    agent_token_file: Path | None = None
    lease: Seconds = 60.0  # An agent that is silent for longer has lost its attempts.
    heartbeat: Seconds = 5.0  # between two heartbeats of an agent
    kill_grace: Grace = 10.0  # from SIGTERM to SIGKILL, after a kill and after a timeout, in pools that do not say another
    max_run_bytes: Annotated[int, Meta(ge=1024, le=2**40)] = 2**30  # of a submitted document
    max_arriving_bytes: Annotated[int, Meta(ge=1024, le=2**50)] = 2 * 2**30  # of all documents on their way together
    max_run_tasks: Annotated[int, Meta(ge=1, le=2**32 - 1)] = 20_000_000

    def __repr__(self) -> str:
        """The address of the tracker is left out, because it may hold a password."""
        return f"Server(listen={self.listen!r}, tracker={self.tracker.partition(':')[0]!r}, ...)"


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration. `default_pool` is a key of `pools`; `source` says for messages where it comes from."""

    server: Server
    pools: dict[str, ConfiguredPool]
    default_pool: str
    source: str


def load(
    path: Path | None = None, *, listen: str | None = None, tracker: str | None = None, workers: int | None = None
) -> Configuration:
    """The configuration in `path` (TOML or JSON), with the command line's values in the place of the file's.

    Without a file, or without `pools` in it, there is one pool `default` of the local executor. `workers` sizes the local pool.
    An address off loopback has TLS or an explicit `insecure`, or is a fault. Raises ConfigurationError with all faults but those
    of the pools' own settings (see ConfiguredPool.check).
    """
    source = str(path) if path else "the command line"
    document = read_table(path, "name another with --config or DAGGYR_CONFIG") if path else {}
    folder = path.absolute().parent if path else Path.cwd()
    faults: list[Fault] = []
    for key in document.keys() - {"server", "pools"}:
        in_server = key in Server.__struct_fields__
        hint = "it belongs under [server]" if in_server else suggest(key, ("server", "pools"), otherwise="known here:")
        faults.append(Fault(key, "unknown key", hint))
    command_line = {name: value for name, value in (("listen", listen), ("tracker", tracker)) if value is not None}
    server = _server(document.get("server", {}), folder, command_line, faults)
    pools = pools_of(document.get("pools", {}), server.kill_grace, folder, faults)
    default_pool = default_of(pools, server.default_pool, faults)
    if workers is not None:
        size_local_pool(pools, workers, default_pool, faults)
    for pool in pools.values():
        if pool.executor == "local":
            pool.settings.setdefault("workers", default_workers())
    if faults:
        raise ConfigurationError(sorted(faults, key=lambda fault: fault.place), source)
    return Configuration(server=server, pools=pools, default_pool=default_pool, source=source)


def default_workers() -> int:
    """How many cores a local pool has by default: two fewer than this process may use, if it may use more than two."""
    cores = usable_cores()
    return cores - 2 if cores > 2 else cores


def _server(table: object, folder: Path, command_line: Mapping[str, str], faults: list[Fault]) -> Server:
    """`[server]`, with the command line's values over it. Rules between two settings are checked if each is sound by itself."""
    found: list[Fault] = []
    if not isinstance(table, Mapping):
        found.append(Fault("server", "expected a table"))
        table = {}
    given = _listen_from_ip_and_port(dict(table), found) | dict(command_line)
    server = check(given, Server, place="server", folder=folder, faults=found)
    faulty = {fault.place.split(".")[1] for fault in found if "." in fault.place}
    if server is None:
        sound = {key: value for key, value in given.items() if key not in faulty}
        server = check(sound, Server, place="server", folder=folder, faults=[]) or Server()

    def where(name: str) -> tuple[str, Path]:
        return (f"--{name}", Path.cwd()) if name in command_line else (f"server.{name}", folder)

    listen, metrics, tracker = server.listen, server.metrics, server.tracker
    check_exposure = not faulty & {"tls", "insecure"}
    if "listen" not in faulty:
        listen = _listen(server.listen, server, *where("listen"), check_exposure=check_exposure, faults=found)
    if metrics is not None and "metrics" not in faulty:
        metrics = _listen(metrics, server, *where("metrics"), check_exposure=check_exposure, faults=found)
        if metrics == listen and not metrics.endswith(":0"):
            found.append(Fault("server.metrics", "`listen` has this address already", "give metrics a port of their own"))
    if "tracker" not in faulty:
        tracker = _tracker(server.tracker, *where("tracker"), faults=found)
    if not faulty & {"lease", "heartbeat"} and server.lease < 2 * server.heartbeat:
        problem = f"{server.lease:g} seconds are too short for a heartbeat every {server.heartbeat:g} seconds"
        found.append(Fault("server.lease", problem, "make it twice as long at least: one late heartbeat loses nothing"))
    faults += found
    return msgspec.structs.replace(server, listen=listen, metrics=metrics, tracker=tracker)


def _listen_from_ip_and_port(table: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """The table with an older form of `listen`, an `ip` and a `port`, turned into the newer one."""
    if not table.keys() & {"ip", "port"}:
        return table
    host, port = table.pop("ip", DEFAULT_ADDRESS.rpartition(":")[0]), table.pop("port", 2503)
    if "listen" in table:
        faults.append(Fault("server.listen", "stands beside `ip` or `port`", "write one of the two forms"))
    elif not isinstance(host, str):
        faults.append(Fault("server.ip", "expected text", 'for instance "127.0.0.1"'))
    elif not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
        faults.append(Fault("server.port", "expected a whole number from 0 to 65535"))
    else:
        table["listen"] = f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
    return table


def _listen(wanted: str, server: Server, place: str, folder: Path, *, check_exposure: bool, faults: list[Fault]) -> str:
    """An address to listen at, checked. The path of a socket comes back absolute."""
    try:
        address = check_address(wanted)
        if address.startswith("unix:"):
            return f"unix:{resolve(address.removeprefix('unix:'), folder)}"
    except (AddressError, ValueError) as error:
        faults.append(Fault(place, str(error)))
        return wanted
    if check_exposure and not (is_loopback(address) or server.tls or server.insecure):
        port = address.rpartition(":")[2]
        faults.append(
            Fault(
                place,
                f"{address} can be reached from other hosts, and without TLS whoever is on the way reads tokens and tasks",
                f"listen at 127.0.0.1:{port} to serve this host only, or give `certificate` and `key` in [server.tls], "
                "or write `insecure = true` in [server] if the network itself is to be trusted",
            )
        )
    return address


def _tracker(address: str, place: str, folder: Path, *, faults: list[Fault]) -> str:
    """The tracker's address, checked. The path of a file comes back absolute. Messages show its first word only, because a
    password may follow."""
    name, colon, rest = address.partition(":")
    known = entry_points(group="daggyr.trackers").names
    if name not in known:
        faults.append(Fault(place, f"there is no tracker `{name[:40]}`", suggest(name, known, otherwise="there are:")))
    elif name == "sqlite":
        try:
            return f"sqlite:{resolve(rest, folder)}"
        except ValueError:
            faults.append(Fault(place, "names no file", "write sqlite:/path/of/state.db"))
    elif name == "memory" and colon:
        faults.append(Fault(place, "memory takes nothing behind it", "write `memory`"))
    return address
