"""What an agent is told at its start: the command line, over a TOML file with the same names, over defaults.

`main` calls `read_config` once. Everything wrong is a UsageError of one line that says where it stands and what to write
instead. Nothing here opens a connection, and tokens are never read here, only the names of their files.
"""

from __future__ import annotations

import argparse
import os
import socket
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from daggyr.bounds import MAX_RESOURCES, MAX_UNITS, MAX_WORD
from daggyr.channel import AddressError, Tls, check_address
from daggyr.environment import pattern_fault
from daggyr.tokens import TokenError, state_folder

from . import __version__
from .resources import host_resources

LOG_LEVELS = ("debug", "info", "warning", "error")

_MAX_FILE_BYTES = 1024 * 1024
_MAX_NAME_BYTES = 200  # it names a folder, where the limit is 255 (NAME_MAX)


class UsageError(Exception):
    """A fault of the command line or the configuration file; the message is one line for a user."""


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
    pass_environment: tuple[str, ...] = ()  # what tasks get of this program's environment, beside daggyr.environment.ALWAYS


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
    add("--config", metavar="FILE", help="TOML with these names; the command line wins")
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
    add("--log-level", metavar="LEVEL", help=f"{', '.join(LOG_LEVELS)} (default: info)")
    add("--lifeline", metavar="FD", help="an inherited pipe: when its other end closes, end everything and leave")
    add("--version", action="version", version=f"daggyr-agent {__version__}")
    return parser


def read_config(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """The configuration from the command line's `arguments` (without the program's name).

    Raises UsageError. `--help` and `--version` print and raise SystemExit, as argparse does.
    """
    given = {name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None}
    path = given.pop("config", None)
    settings: dict[str, Any] = {**(_read_file(_path(path)) if path else {}), **given}
    resources = host_resources()
    if path and "resource" in given:  # the file's, too, where the command line names others
        resources.update(_resources(_read_file(_path(path)).get("resource", ())))
    resources.update(_resources(settings.get("resource", ())))
    if resources["cores"] < 1:
        raise UsageError("resource cores: an agent offers at least 1")
    name = _name(settings.get("name", socket.gethostname()))
    state_dir = settings.get("state_dir")
    token_file = settings.get("token_file")
    return Config(
        coordinator=_coordinator(settings.get("coordinator", "")),
        name=name,
        pool=_word("pool", settings.get("pool", "default")),
        resources=resources,
        state_dir=_path(state_dir) if state_dir else _default_state_dir(environment, name),
        token_file=_path(token_file) if token_file else None,
        tls=_tls(settings),
        insecure=bool(settings.get("insecure", False)),
        noop=bool(settings.get("noop", False)),
        log_level=_log_level(settings.get("log_level", "info")),
        lifeline=_lifeline(settings.get("lifeline")),
        pass_environment=_patterns(settings.get("pass_environment", ())),
    )


_STRINGS = ("coordinator", "name", "pool", "state_dir", "token_file", "tls_ca", "tls_cert", "tls_key", "log_level")
_FLAGS = ("tls", "insecure", "noop")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise UsageError(
                f"the configuration {path} is larger than {_MAX_FILE_BYTES:,} bytes: name another file with --config"
            )
        content = tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from None
    except ValueError as error:  # of tomllib, of UTF-8, and of a number with thousands of digits
        raise UsageError(f"{path} is no TOML: {error}") from None
    settings = {name.replace("-", "_"): value for name, value in content.items()}
    for name, value in settings.items():
        if name in _STRINGS:
            if not isinstance(value, str):
                raise UsageError(f"{path}: {name} must be a string")
        elif name in _FLAGS:
            if not isinstance(value, bool):
                raise UsageError(f"{path}: {name} must be true or false")
        elif name == "pass_environment":
            if not (isinstance(value, list) and all(isinstance(pattern, str) for pattern in value)):
                raise UsageError(f'{path}: pass_environment must be a list of names, for instance ["LD_LIBRARY_PATH", "CUDA_*"]')
        elif name != "resource":
            known = ", ".join((*_STRINGS, *_FLAGS, "pass_environment", "resource"))
            raise UsageError(f"{path}: unknown setting {name!r}; there are {known}")
    return settings


def _resources(given: object) -> dict[str, int]:
    """Units by name from `NAME=UNITS` words, or from a TOML table."""
    if isinstance(given, dict):
        pairs = [(str(name), value) for name, value in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        pairs = []
        for word in given:
            name, equals, units = str(word).partition("=")
            if not equals:
                raise UsageError(f"resource {str(word)!r}: write NAME=UNITS, for instance cores=8")
            pairs.append((name, units))
    else:
        raise UsageError('resource: write a table, for instance resource = {cores = 8}, or a list of "NAME=UNITS"')
    resources: dict[str, int] = {}
    for name, units in pairs:
        _word("resource", name)
        whole = isinstance(units, int) and not isinstance(units, bool)
        if not whole and not (isinstance(units, str) and units.isascii() and units.isdecimal()):
            raise UsageError(f"resource {name}: {units!r} is no whole number of units")
        # The text's length first: what is far too long would take long to read.
        if len(str(units)) > 100 or not 0 <= int(units) <= MAX_UNITS:
            raise UsageError(f"resource {name}: {str(units)[:40]} is not between 0 and {MAX_UNITS}")
        if name in resources:
            raise UsageError(f"resource {name} is given twice")
        resources[name] = int(units)
    if len(resources) > MAX_RESOURCES:
        raise UsageError(f"resource: {len(resources)} are given, and an agent offers at most {MAX_RESOURCES}")
    return resources


def _patterns(given: Sequence[str]) -> tuple[str, ...]:
    for pattern in given:
        fault = pattern_fault(pattern)
        if fault is not None:
            raise UsageError(f"pass_environment: {fault}")
    return tuple(given)


def _coordinator(address: str) -> str:
    if not address:
        raise UsageError("no coordinator: write --coordinator HOST:2503 (see daggyr-agent --help)")
    try:
        address = check_address(address)
    except AddressError as error:
        raise UsageError(f"coordinator: {error}") from None
    # In full, for logs that are read elsewhere.
    return f"unix:{_path(address[5:])}" if address.startswith("unix:") else address


def _name(name: str) -> str:
    _word("name", name)
    if "/" in name or name in (".", "..") or len(name.encode()) > _MAX_NAME_BYTES:
        raise UsageError(f"name {name!r} cannot name a folder: write one without '/', of at most {_MAX_NAME_BYTES} bytes")
    return name


def _word(what: str, text: str) -> str:
    if not text or not text.isprintable() or any(character.isspace() for character in text):
        raise UsageError(f"{what} {text[:MAX_WORD]!r}: write one word of printable characters")
    if len(text) > MAX_WORD:
        raise UsageError(f"{what} {text[:40]!r}...: it has {len(text)} characters, and {MAX_WORD} are the most")
    return text


def _default_state_dir(environment: Mapping[str, str], name: str) -> Path:
    try:
        return state_folder(environment) / "agents" / name
    except TokenError as error:
        raise UsageError(f"{error}; or name the agent's folder with --state-dir") from None


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise UsageError(f"{text!r}: the home folder that `~` stands for is not known; write the whole path") from None
    except FileNotFoundError:
        raise UsageError(f"{text!r}: the folder that it counts from was removed; write the whole path") from None


def _tls(settings: Mapping[str, Any]) -> Tls | None:
    authority, certificate, key = (settings.get(name) for name in ("tls_ca", "tls_cert", "tls_key"))
    if bool(certificate) != bool(key):
        raise UsageError("tls_cert and tls_key go together")
    if not (settings.get("tls") or authority or certificate):
        return None
    return Tls(
        authority=_path(authority) if authority else None,
        certificate=_path(certificate) if certificate else None,
        key=_path(key) if key else None,
    )


def _log_level(level: str) -> str:
    if level.lower() not in LOG_LEVELS:
        raise UsageError(f"log_level {level!r}: there are {', '.join(LOG_LEVELS)}")
    return level.lower()


def _lifeline(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(f"lifeline {text!r} is no number of a file descriptor")
    try:
        os.fstat(int(text))
    except OSError as error:
        raise UsageError(f"lifeline {text}: no such file descriptor was inherited ({error.strerror})") from None
    except OverflowError:
        raise UsageError(f"lifeline {text} is no number of a file descriptor") from None
    return int(text)
