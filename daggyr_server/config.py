"""The server's configuration: read, completed and checked before anything is started.

`daggyr-server` and `daggyr run` call `load` with the file they were given, if any, and the values from their command
line, which win. All faults are told together. The settings of a pool belong to its executor, which declares them as a
Struct type; they are kept as they stand and checked by `Pool.check`, once that executor was found. Nothing here opens a
socket, a certificate or a tracker, and nothing reads a token.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from daggyr.channel import DEFAULT_ADDRESS, AddressError, check_address, is_loopback
from daggyr.checked import ConfigurationError, Fault, check, resolve, suggest

MAX_FILE_BYTES = 1024 * 1024
MAX_POOL_NAME = 128  # characters

S = TypeVar("S", bound=msgspec.Struct)
Seconds = Annotated[float, Meta(ge=0.1, le=86_400)]
Grace = Annotated[float, Meta(ge=0, le=86_400)]


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """`[server.tls]`: PEM files. With `client_ca`, only clients and agents with a certificate of that authority get in."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """`[server]`. Times are in seconds. Without a token file, the one in the user's state folder is meant."""

    listen: str = DEFAULT_ADDRESS  # HOST:PORT, port 0 for a free one, or unix:PATH with an absolute path
    metrics: str | None = None  # where Prometheus scrapes: an address like that of `listen`; None: nowhere
    tracker: str = "memory"  # `memory`, `sqlite:PATH` with an absolute path, or another tracker's address
    default_pool: str | None = None
    insecure: bool = False  # listen off loopback without TLS
    tls: Tls | None = None
    client_token_file: Path | None = None
    agent_token_file: Path | None = None
    lease: Seconds = 60.0  # an agent that was silent for longer has lost its attempts
    heartbeat: Seconds = 5.0  # how often an agent says that it is there
    kill_grace: Grace = 10.0  # from SIGTERM to SIGKILL, after a kill and after a timeout; of pools that say no other
    max_run_bytes: Annotated[int, Meta(ge=1024, le=2**40)] = 2**30  # of a submitted document
    max_arriving_bytes: Annotated[int, Meta(ge=1024, le=2**50)] = 2 * 2**30  # of documents on their way, all together, on disk
    max_run_tasks: Annotated[int, Meta(ge=1, le=2**32 - 1)] = 20_000_000

    def __repr__(self) -> str:
        """Without the tracker's address, which may hold a password."""
        return f"Server(listen={self.listen!r}, tracker={self.tracker.partition(':')[0]!r}, ...)"


class _EveryPool(msgspec.Struct, frozen=True, kw_only=True):
    """What every `[pools.NAME]` may set, whatever its executor. Times are in seconds."""

    kill_grace: Grace  # the server's unless given


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """`[pools.NAME]`: the executor's name, what every pool may set, and the executor's settings as they stand in the file."""

    name: str
    executor: str
    kill_grace: float  # seconds from SIGTERM to SIGKILL; the server's unless the file says another
    settings: dict[str, Any]
    folder: Path  # relative paths among the settings count from here

    def check(self, kind: type[S], faults: list[Fault]) -> S | None:
        """The settings as the executor declares them, or None after all that is wrong was added to `faults`."""
        return check(self.settings, kind, place=f"pools.{self.name}", folder=self.folder, faults=faults)


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `default_pool` is a key of `pools`; `source` names where it comes from, for messages."""

    server: Server
    pools: dict[str, Pool]
    default_pool: str
    source: str


def load(
    path: Path | None = None, *, listen: str | None = None, tracker: str | None = None, workers: int | None = None
) -> Configuration:
    """The configuration in `path` (TOML, or JSON), with the command line's values over the file's.

    Without a file, and without `pools` in it: one pool `default` of the local executor. `workers` sizes the local pool.
    What comes back keeps the listening rule: off loopback with TLS or an explicit `insecure` only.
    Raises ConfigurationError with all faults, except those of the pools' own settings (see Pool.check).
    """
    source = str(path) if path else "the command line"
    document = _read(path) if path else {}
    folder = path.absolute().parent if path else Path.cwd()
    faults: list[Fault] = []
    for key in document.keys() - {"server", "pools"}:
        in_server = key in Server.__struct_fields__
        hint = "it belongs under [server]" if in_server else suggest(key, ("server", "pools"), otherwise="known here:")
        faults.append(Fault(key, "unknown key", hint))
    command_line = {name: value for name, value in (("listen", listen), ("tracker", tracker)) if value is not None}
    server = _server(document.get("server", {}), folder, command_line, faults)
    pools = _pools(document.get("pools", {}), server.kill_grace, folder, faults)
    default_pool = _default_pool(server.default_pool, pools, faults)
    if workers is not None:
        _size(pools, workers, default_pool, faults)
    for pool in pools.values():
        if pool.executor == "local":
            pool.settings.setdefault("workers", default_workers())
    if faults:
        raise ConfigurationError(sorted(faults, key=lambda fault: fault.place), source)
    return Configuration(server=server, pools=pools, default_pool=default_pool, source=source)


def default_workers() -> int:
    """How many tasks a local pool runs at once unless told: two cores fewer than this process may use, if it has more."""
    cores = len(os.sched_getaffinity(0))
    return cores - 2 if cores > 2 else cores


def _read(path: Path) -> dict[str, Any]:
    """The document in `path`: TOML or JSON by its suffix, else JSON if it begins with a brace."""

    def refuse(problem: str, hint: str = "") -> NoReturn:
        raise ConfigurationError([Fault("the file", problem, hint)], str(path)) from None

    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        refuse(f"cannot be read: {error.strerror}", "name another with --config or DAGGYR_CONFIG")
    if len(data) > MAX_FILE_BYTES:
        refuse(f"is larger than {MAX_FILE_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
        is_json = path.suffix == ".json" or (path.suffix != ".toml" and text.lstrip().startswith("{"))
        document = json.loads(text, object_pairs_hook=_distinct) if is_json else tomllib.loads(text)
    except UnicodeDecodeError as error:
        refuse(f"is not UTF-8 text (at byte {error.start})")
    except ValueError as error:
        refuse(f"is no {'JSON' if is_json else 'TOML'}: {error}")
    except RecursionError:
        refuse("is nested too deeply")
    if not isinstance(document, dict):
        refuse("holds no table", 'write at least {"server": {}}')
    return document


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are told apart, as TOML demands too."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return table


def _server(table: object, folder: Path, command_line: Mapping[str, str], faults: list[Fault]) -> Server:
    """`[server]` with the command line's values over it. Rules between settings hold those that are sound by themselves."""
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
    """The older form of `listen`, an `ip` and a `port`, in the newer one."""
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
    """An address to listen at, checked and with an absolute path."""
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
    """The tracker's address, with an absolute path; only its first word is ever shown, a password may follow."""
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


def _pools(tables: object, kill_grace: float, folder: Path, faults: list[Fault]) -> dict[str, Pool]:
    """The pools by name; those with faults are among them as far as they are known, so that names can be checked."""
    if not isinstance(tables, Mapping):
        faults.append(Fault("pools", "expected a table of pools", "write [pools.NAME] with executor = ..."))
        return {}
    pools = {}
    for name, table in (tables or {"default": {"executor": "local"}}).items():
        place = f"pools.{name[:MAX_POOL_NAME]}"
        if not (0 < len(name) <= MAX_POOL_NAME and name.isprintable()):
            faults.append(Fault(place, f"a pool's name has 1 to {MAX_POOL_NAME} printable characters"))
        settings = dict(table) if isinstance(table, Mapping) else {}
        executor = settings.pop("executor", None)
        given = {"kill_grace": kill_grace} | {key: settings.pop(key) for key in _EveryPool.__struct_fields__ if key in settings}
        own = check(given, _EveryPool, place=place, folder=folder, faults=faults) or _EveryPool(kill_grace=kill_grace)
        if isinstance(table, Mapping):
            _check_executor(executor, place, faults)
        else:
            faults.append(Fault(place, "expected a table", 'write executor = "local" in it, for instance'))
        if executor == "agent":
            _explain_dialing_in(name, settings, faults)
        pools[name] = Pool(name=name, executor=str(executor), kill_grace=own.kill_grace, settings=settings, folder=folder)
    return pools


def _check_executor(executor: object, place: str, faults: list[Fault]) -> None:
    known = entry_points(group="daggyr.executors").names
    if isinstance(executor, str) and executor not in known:
        hint = suggest(executor, known, otherwise="there are:")
        faults.append(Fault(f"{place}.executor", f"there is no executor `{executor[:40]}`", hint))
    elif not isinstance(executor, str):
        problem = "`executor` is missing" if executor is None else "`executor` has to be text"
        faults.append(Fault(place, problem, f"there are: {', '.join(sorted(known))}"))


def _explain_dialing_in(name: str, settings: Mapping[str, Any], faults: list[Fault]) -> None:
    """Targets with a `base_url` come from configurations in which the server called its agents."""
    targets = settings.get("targets")
    for index, target in enumerate(targets if isinstance(targets, list) else []):
        if not isinstance(target, Mapping) or "base_url" not in target:
            continue
        try:
            host = urlsplit(str(target["base_url"])).hostname
        except ValueError:
            host = None
        resources = target.get("resources")
        offers = (
            "".join(f" --resource {key}={units}" for key, units in resources.items()) if isinstance(resources, Mapping) else ""
        )
        faults.append(
            Fault(
                f"pools.{name}.targets[{index}].base_url",
                "agents dial in now, the server does not call them",
                f"leave `targets` out and start `daggyr-agent --coordinator THIS_HOST:2503 --pool {name}{offers}` "
                f"on {host or 'that host'}",
            )
        )


def _size(pools: Mapping[str, Pool], workers: int, default_pool: str, faults: list[Fault]) -> None:
    """Gives the local pool its workers: the default pool if that is local, else the only one that is."""
    local = [pool for pool in pools.values() if pool.executor == "local"]
    if len(local) > 1:
        local = [pool for pool in local if pool.name == default_pool]
    if workers < 1:
        faults.append(Fault("--workers", f"expected a whole number of at least 1, found {workers}"))
    elif not local:
        faults.append(Fault("--workers", "there is no one local pool that it could size", "write `workers` in the pool"))
    else:
        local[0].settings["workers"] = workers


def _default_pool(wanted: str | None, pools: Mapping[str, Pool], faults: list[Fault]) -> str:
    """Where a run goes that names no pool: the one the server names, the only one, or the one called `default`."""
    if wanted is not None:
        if wanted not in pools:
            hint = suggest(wanted, pools, otherwise="there are:")
            faults.append(Fault("server.default_pool", f"there is no pool `{wanted[:40]}`", hint))
        return wanted
    if len(pools) == 1:
        return next(iter(pools))
    if "default" not in pools and pools:
        hint = f"write `default_pool` in [server], one of: {', '.join(sorted(pools))}; or call a pool `default`"
        faults.append(Fault("server.default_pool", "several pools, and none of them is the default", hint))
    return "default"
