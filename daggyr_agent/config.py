"""What an agent is told at its start: the command line, over a file with the same names, over defaults.

`main` calls `read_config` once. Types, unknown keys and paths are checked by `daggyr.checked`, as the server's settings are; the
rules that are an agent's own stand here. All faults are told together, each with the place where it stands (`pool`, `--pool`).
Nothing here opens a connection, and tokens are never read here, only the names of their files.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

from msgspec import Meta, Struct

from daggyr.address import AddressError, Tls, check_address
from daggyr.bounds import MAX_RESOURCES, MAX_UNITS, MAX_WORD
from daggyr.checked import ConfigurationError, Fault, check, read_table, resolve
from daggyr.daemon import lifeline_of
from daggyr.environment import pattern_fault
from daggyr.tokens import TokenError, state_folder

from . import __version__
from .resources import host_resources

_MAX_NAME_BYTES = 200  # it names a folder, where the limit is 255 (NAME_MAX)
_ANOTHER = "name another with --config"
_MAX_DIGITS = 100  # of a number: reading one of thousands would take long

LogLevel = Literal["debug", "info", "warning", "error"]
Seconds = Annotated[float, Meta(gt=0, le=10 * 365 * 86_400)]
Units = Annotated[int, Meta(ge=0, le=MAX_UNITS)]


class UsageError(Exception):
    """An option that there is not, or one without its value; the message is one line for a user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All that an agent needs to know; `resources` are whole units by name, with `cores` among them."""

    coordinator: str
    name: str
    pool: str
    resources: Mapping[str, int]
    state_dir: Path
    token_file: Path | None
    tls: Tls | None
    insecure: bool  # the token may cross a network without TLS
    noop: bool
    log_level: str
    lifeline: int | None
    coordinator_file: Path | None = None  # holds the coordinator's address, and is read for each session
    orphan_seconds: float | None = None  # the agent ends after so long without a session
    ends_in: float | None = None  # seconds after its start in which it ends
    pass_environment: tuple[str, ...] = ()  # what tasks get of this program's environment, beside daggyr.environment.ALWAYS


class _Settings(Struct, frozen=True, kw_only=True):
    """The settings as they are written. A file holds these, and the command line has an option for each."""

    coordinator: str = ""
    coordinator_file: Path | None = None
    orphan_seconds: Seconds | None = None
    ends_in: Seconds | None = None
    name: str | None = None
    pool: str = "default"
    resource: Annotated[dict[str, Units], Meta(max_length=MAX_RESOURCES)] = {}
    state_dir: Path | None = None
    token_file: Path | None = None
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    noop: bool = False
    log_level: LogLevel = "info"
    pass_environment: list[str] = []


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see daggyr-agent --help)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="daggyr-agent",
        description="Runs tasks on this host for a DaggyR coordinator.",
        epilog="Example: daggyr-agent --coordinator build1:2503 --pool farm --resource gpus=2",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--coordinator", metavar="ADDRESS", help="HOST:PORT or unix:PATH of the coordinator; needed, here or in the file")
    add(
        "--coordinator-file", metavar="FILE", help="a file with that address, read for each session: a server that moves is found"
    )
    add("--orphan-seconds", metavar="S", help="end when no coordinator was reached for S seconds (default: wait for ever)")
    add(
        "--ends-in",
        metavar="S",
        help="this host is there for S seconds: take what can be done by then, and end (default: no limit)",
    )
    add("--name", metavar="NAME", help="unique among the connected agents (default: the host's name)")
    add("--pool", metavar="POOL", help="the pool to join (default: default)")
    add(
        "--resource",
        metavar="NAME=UNITS",
        action="append",
        help="what this host offers, for instance cores=8; again for each (default: its usable cores and memory_mb)",
    )
    add("--state-dir", metavar="DIR", help="a folder of its own (default: $XDG_STATE_HOME/daggyr/agents/NAME)")
    add("--token-file", metavar="FILE", help="the agent token (default: the user's agent.token; none for unix:)")
    add("--config", metavar="FILE", help="TOML or JSON with these names; the command line wins")
    add("--tls", action="store_true", default=None, help="connect with TLS")
    add("--tls-ca", metavar="FILE", help="trust the certificates in this PEM file; implies --tls")
    add("--tls-cert", metavar="FILE", help="this agent's certificate, for a server that asks; implies --tls")
    add("--tls-key", metavar="FILE", help="its key")
    add("--insecure", action="store_true", default=None, help="send the token off this host without TLS too")
    add(
        "--pass-environment",
        metavar="NAME",
        action="append",
        help="a variable of this program that tasks get, PREFIX_* for several; again for each (PATH, HOME and the like always)",
    )
    add("--noop", action="store_true", default=None, help="answer without starting anything, to measure")
    add("--log-level", metavar="LEVEL", help=f"{', '.join(get_args(LogLevel))} (default: info)")
    add("--lifeline", metavar="FD", help="an inherited pipe: when its other end closes, end everything and leave")
    add("--version", action="version", version=f"daggyr-agent {__version__}")
    return parser


def read_config(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """The configuration from the command line's `arguments` (without the program's name).

    Raises UsageError for a command line that cannot be taken apart, and ConfigurationError with all other faults. `--help` and
    `--version` print and raise SystemExit, as argparse does.
    """
    given = {name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    file = given.pop("config", None)
    faults: list[Fault] = []
    lifeline = _lifeline(given.pop("lifeline", None), faults)
    table = (
        {name.replace("-", "_"): value for name, value in read_table(_file(file), _ANOTHER).items()} if file is not None else {}
    )
    for option in ("orphan_seconds", "ends_in"):
        if isinstance(text := given.get(option), str):
            with contextlib.suppress(ValueError):
                given[option] = float(text)
    settings = _settings(table, given, faults)

    def place(name: str) -> str:
        return _place(name, given)

    name = socket.gethostname() if settings.name is None else settings.name
    _check_name(name, place("name"), faults)
    _check_word(settings.pool, place("pool"), faults)
    for pattern in settings.pass_environment:
        if (fault := pattern_fault(pattern)) is not None:
            faults.append(Fault(place("pass_environment"), fault))
    for resource in settings.resource:
        _check_word(resource, place("resource"), faults)
    resources = {**host_resources(), **settings.resource}
    if resources["cores"] < 1:
        faults.append(Fault(place("resource"), "an agent offers at least 1 of cores"))
    if bool(settings.tls_cert) != bool(settings.tls_key):
        faults.append(Fault(place("tls_cert" if settings.tls_cert else "tls_key"), "tls_cert and tls_key go together"))
    config = Config(
        coordinator="" if settings.coordinator_file else _coordinator(settings.coordinator, place("coordinator"), faults),
        coordinator_file=settings.coordinator_file,
        orphan_seconds=settings.orphan_seconds,
        ends_in=settings.ends_in,
        name=name,
        pool=settings.pool,
        resources=resources,
        state_dir=settings.state_dir or _default_state_dir(environment, name, faults),
        token_file=settings.token_file,
        tls=_tls(settings),
        insecure=settings.insecure,
        noop=settings.noop,
        log_level=settings.log_level,
        lifeline=lifeline,
        pass_environment=tuple(settings.pass_environment),
    )
    if faults:
        raise ConfigurationError(faults, file or "the command line")
    return config


def _settings(table: Mapping[str, Any], given: Mapping[str, Any], faults: list[Fault]) -> _Settings:
    """The file's settings with the command line's over them. Those with faults have their defaults, so that the others are
    checked."""
    found: list[Fault] = []
    merged = {**table, **given}
    if isinstance(level := merged.get("log_level"), str):
        merged["log_level"] = level.lower()
    offered = _offer(table.get("resource", {}), "resource", faults)
    if isinstance(offered, dict):
        merged["resource"] = {**offered, **_offer(given.get("resource", []), "--resource", faults)}
    else:
        merged["resource"] = offered
        given = {name: value for name, value in given.items() if name != "resource"}
    settings = check(merged, _Settings, place="", folder=Path(), faults=found)
    if settings is None:
        faulty = {re.split(r"[.\[]", fault.place)[0] for fault in found}
        sound = {name: value for name, value in merged.items() if name not in faulty}
        settings = check(sound, _Settings, place="", folder=Path(), faults=[]) or _Settings()
    faults += (Fault(_place(fault.place, given), fault.problem, fault.hint) for fault in found)
    return settings


def _place(name: str, given: Mapping[str, Any]) -> str:
    """Where a setting stands, for a fault: `pool` in the file, `--pool` on the command line."""
    setting, rest = re.fullmatch(r"(\w*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]  # it matches everything
    return f"--{setting.replace('_', '-')}{rest}" if setting in given else name


def _offer(given: object, place: str, faults: list[Fault]) -> Any:
    """Units by name, where they are `NAME=UNITS` words; a table, and all else, as it is."""
    if not isinstance(given, list):
        return given
    offer: dict[str, object] = {}
    for word in given:
        resource, equals, units = str(word).partition("=")
        if not equals:
            faults.append(Fault(place, f"{str(word)[:MAX_WORD]!r} offers nothing", "write NAME=UNITS, for instance cores=8"))
        elif resource in offer:
            faults.append(Fault(place, f"{resource[:MAX_WORD]} is given twice"))
        else:
            offer[resource] = int(units) if re.fullmatch(rf"-?[0-9]{{1,{_MAX_DIGITS}}}", units) else units
    return offer


def _coordinator(address: str, place: str, faults: list[Fault]) -> str:
    """The coordinator's address, a socket's with its whole path, for logs that are read elsewhere."""
    if not address:
        if any(fault.place == place for fault in faults):
            return address  # there is one, of which something else is wrong
        faults.append(Fault("coordinator", "there is none", "write --coordinator HOST:2503 (see daggyr-agent --help)"))
        return address
    try:
        if check_address(address).startswith("unix:"):
            return f"unix:{resolve(address.removeprefix('unix:'), Path())}"
    except (AddressError, ValueError) as error:
        faults.append(Fault(place, str(error)))
    return address


def _check_name(name: str, place: str, faults: list[Fault]) -> None:
    _check_word(name, place, faults)
    if "/" in name or name in (".", "..") or len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        problem = f"{name[:MAX_WORD]!r} cannot name a folder"
        faults.append(Fault(place, problem, f"write one without '/', of at most {_MAX_NAME_BYTES} bytes"))


def _check_word(text: str, place: str, faults: list[Fault]) -> None:
    if not text or not text.isprintable() or any(character.isspace() for character in text):
        faults.append(Fault(place, f"{text[:MAX_WORD]!r} is no word", "write one word of printable characters"))
    elif len(text) > MAX_WORD:
        faults.append(Fault(place, f"{text[:40]!r}... has {len(text)} characters, and {MAX_WORD} are the most"))


def _default_state_dir(environment: Mapping[str, str], name: str, faults: list[Fault]) -> Path:
    try:
        return state_folder(environment) / "agents" / name
    except TokenError as error:
        faults.append(Fault("state_dir", str(error), "or name the agent's folder with --state-dir"))
        return Path()


def _file(text: str) -> Path:
    try:
        return resolve(text, Path())
    except ValueError as error:
        raise ConfigurationError([Fault("--config", str(error))], "the command line") from None


def _tls(settings: _Settings) -> Tls | None:
    if not (settings.tls or settings.tls_ca or settings.tls_cert):
        return None
    return Tls(authority=settings.tls_ca, certificate=settings.tls_cert, key=settings.tls_key)


def _lifeline(text: str | None, faults: list[Fault]) -> int | None:
    if text is None:
        return None
    try:
        return lifeline_of(text)
    except ValueError as error:
        faults.append(Fault("--lifeline", str(error)))
        return None
