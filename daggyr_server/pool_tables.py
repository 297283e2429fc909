"""The tables `[pools.NAME]` of the configuration: which pools there are, which executor each has, and which is the default.

`config` calls this while it reads the file. The settings of a pool belong to its executor, which declares them as a Struct type:
they are kept as they stand, and checked by `Pool.check` once the executor was found. Nothing here starts an executor.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from daggyr.checked import Fault, check, suggest

MAX_POOL_NAME = 128  # characters

S = TypeVar("S", bound=msgspec.Struct)
Grace = Annotated[float, Meta(ge=0, le=86_400)]  # seconds


class _EveryPool(msgspec.Struct, frozen=True, kw_only=True):
    """What every `[pools.NAME]` may set, whatever its executor is."""

    kill_grace: Grace


class ConfiguredPool(msgspec.Struct, frozen=True, kw_only=True):
    """`[pools.NAME]`: the executor's name, what every pool may set, and the executor's settings as they stand in the file."""

    name: str
    executor: str
    kill_grace: float  # seconds from SIGTERM to SIGKILL; the server's, unless the table has its own
    settings: dict[str, Any]
    folder: Path  # where relative paths among the settings begin

    def check(self, kind: type[S], faults: list[Fault]) -> S | None:
        """The settings as the executor declares them, or None, with all that is wrong added to `faults`."""
        return check(self.settings, kind, place=f"pools.{self.name}", folder=self.folder, faults=faults)


def pools_of(tables: object, kill_grace: float, folder: Path, faults: list[Fault]) -> dict[str, ConfiguredPool]:
    """The pools by name. `kill_grace` (seconds) is that of pools that do not say another.

    Pools with faults are among them as far as they are known, so that names can be checked.
    """
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
        pools[name] = ConfiguredPool(
            name=name, executor=str(executor), kill_grace=own.kill_grace, settings=settings, folder=folder
        )
    return pools


def size_local_pool(pools: Mapping[str, ConfiguredPool], workers: int, default_pool: str, faults: list[Fault]) -> None:
    """Give the local pool its workers: the default pool if that is local, else the only one that is."""
    local = [pool for pool in pools.values() if pool.executor == "local"]
    if len(local) > 1:
        local = [pool for pool in local if pool.name == default_pool]
    if workers < 1:
        faults.append(Fault("--workers", f"expected a whole number of at least 1, found {workers}"))
    elif not local:
        faults.append(Fault("--workers", "there is no one local pool that it could size", "write `workers` in the pool"))
    else:
        local[0].settings["workers"] = workers


def default_of(pools: Mapping[str, ConfiguredPool], wanted: str | None, faults: list[Fault]) -> str:
    """The pool of runs that name none: the one that `[server]` names, the only one, or the one that is called `default`."""
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


def _check_executor(executor: object, place: str, faults: list[Fault]) -> None:
    known = entry_points(group="daggyr.executors").names
    if isinstance(executor, str) and executor not in known:
        hint = suggest(executor, known, otherwise="there are:")
        faults.append(Fault(f"{place}.executor", f"there is no executor `{executor[:40]}`", hint))
    elif not isinstance(executor, str):
        problem = "`executor` is missing" if executor is None else "`executor` has to be text"
        faults.append(Fault(place, problem, f"there are: {', '.join(sorted(known))}"))


def _explain_dialing_in(name: str, settings: Mapping[str, Any], faults: list[Fault]) -> None:
    """Explain targets with a `base_url`, which come from configurations of servers that called their agents."""
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
