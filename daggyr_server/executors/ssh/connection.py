"""One SSH connection to a target: how it is logged in, and in words why it is not.

`session.py` asks for one whenever it begins, and opens its shells on it. Host keys are checked unless the pool says, by a
setting with a loud name, that any will do. `~/.ssh/config` (ssh_config(5)), SSH agents and jump hosts are asyncssh's work.
Nothing here tries again.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import asyncssh

from daggyr_server.executors.ssh.settings import SshSettings, TargetSettings

CONNECT_SECONDS = 15.0
LOGIN_SECONDS = 60.0  # key exchange and authentication; some hosts look names up first
logging.getLogger("asyncssh").setLevel(logging.WARNING)  # what matters of each connection, its target tells

MISSED_KEEPALIVES = 3  # then a connection that says nothing is given up


class TargetFault(Exception):
    """A target that cannot be used for now; the message says why, and what to do if that is known."""


async def connect(target: TargetSettings, settings: SshSettings, keepalive: float) -> asyncssh.SSHClientConnection:
    """Make a connection that is logged in; the caller closes it. Every `keepalive` seconds it is asked whether it still stands.

    Raises TargetFault.
    """
    try:
        common: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS,
            "login_timeout": LOGIN_SECONDS,
            "keepalive_interval": keepalive,
            "keepalive_count_max": MISSED_KEEPALIVES,
        }
        if settings.ssh_config is not None:
            common["config"] = [str(settings.ssh_config)]
        if target.private_key_file is not None:
            common["client_keys"] = [str(target.private_key_file)]
        if settings.insecure_trust_any_host_key:
            common["known_hosts"] = None
        elif settings.known_hosts is not None:
            common["known_hosts"] = str(settings.known_hosts)
        given = dict(common)
        if target.host_key or target.host_ca:
            given["known_hosts"] = _pinned(target)
        if target.port is not None:
            given["port"] = target.port
        if target.user is not None:
            given["username"] = target.user
        jump = None
        by = target.jump or _proxy_jump(target, common)
        if by is not None:
            jump = given["tunnel"] = await _jump(by, common)
        try:
            connection = await asyncssh.connect(target.host, **given)
        except BaseException:
            if jump is not None:
                jump.abort()
            raise
        if jump is not None:
            connection.set_tunnel(jump)  # which is closed with it
        return connection
    except (asyncssh.Error, OSError, ValueError) as error:
        raise TargetFault(_explained(error, target, settings)) from error


def _as_configured(target: TargetSettings, common: dict[str, Any]) -> asyncssh.SSHClientConnectionOptions:
    """What ssh_config(5) makes of a target's name; keys are not read for that."""
    config = {"config": common["config"]} if "config" in common else {}
    return asyncssh.SSHClientConnectionOptions(host=target.host, client_keys=None, known_hosts=None, **config)


def _proxy_jump(target: TargetSettings, common: dict[str, Any]) -> str | None:
    """The jump host that ssh_config(5) gives a target. `_jump` knows the pool's `known_hosts`; asyncssh by itself would not.

    Several in a row are left to asyncssh.
    """
    jump = _as_configured(target, common).tunnel
    return jump if isinstance(jump, str) and jump and "," not in jump else None


def check_files(settings: SshSettings) -> str | None:
    """What is wrong with the files that the settings name, if anything is."""
    files = [("known_hosts", settings.known_hosts), ("ssh_config", settings.ssh_config)]
    files += [(f"private_key_file of target {target.known_as}", target.private_key_file) for target in settings.targets]
    for setting, path in files:
        if path is not None:
            try:
                with path.open("rb"):
                    pass
            except OSError as error:
                return f"{setting}: cannot read {path}: {error.strerror}"
    for target in settings.targets:
        try:
            if target.host_key or target.host_ca:
                _pinned(target)
        except asyncssh.KeyImportError as error:
            setting = f"host_key or host_ca of target {target.known_as}"
            return f"{setting} is no public key in OpenSSH's form, `ssh-ed25519 AAAA...`: {error}"
    return None


def _pinned(target: TargetSettings) -> Any:
    """What asyncssh takes in place of known_hosts: trusted host keys, trusted authorities, revoked keys."""
    return (
        [asyncssh.import_public_key(target.host_key)] if target.host_key else [],
        [asyncssh.import_public_key(target.host_ca)] if target.host_ca else [],
        [],
    )


async def _jump(jump: str, common: dict[str, Any]) -> asyncssh.SSHClientConnection:
    user, _, rest = jump.rpartition("@")
    has_port = rest.count(":") == 1 or "]:" in rest  # an IPv6 address has colons of its own
    host, _, port = rest.rpartition(":") if has_port else (rest, "", "")
    given = dict(common)
    if user:
        given["username"] = user
    if port:
        given["port"] = int(port)
    try:
        return await asyncssh.connect(host.strip("[]"), **given)
    except (asyncssh.Error, OSError, ValueError) as error:
        raise TargetFault(f"the jump host {rest}: {_reason(error)}") from error


def _explained(error: Exception, target: TargetSettings, settings: SshSettings) -> str:
    where = f"{target.host}:{target.port}" if target.port else target.host
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        if target.host_key or target.host_ca:
            return f"{where} does not have the key that `host_key` or `host_ca` of its target names: {error.reason}"
        # ssh-keyscan(1) knows nothing of ssh_config(5), and known_hosts has the names that stand there.
        known = _as_configured(target, {"config": [str(settings.ssh_config)]} if settings.ssh_config is not None else {})
        port = target.port or known.port
        option = f"-p {port} " if port != 22 else ""
        return (
            f"the host key of {where} is not known, or is another than the one that is known: {error.reason}; if this is the "
            f"first time, check its fingerprint and add what `ssh-keyscan {option}{known.host}` prints to known_hosts"
        )
    if isinstance(error, asyncssh.PermissionDenied):
        keys = f"the key {target.private_key_file}" if target.private_key_file else "any key of the SSH agent or ~/.ssh"
        return f"{where} does not let {target.user or 'this user'} in with {keys}: {error.reason}"
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError):
        return f"{where}: a private key cannot be used: {error}; one with a passphrase belongs into an SSH agent"
    return f"{where}: {_reason(error)}"


def _reason(error: Exception) -> str:
    if isinstance(error, asyncssh.Error):
        return str(error.reason)
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, OSError) and error.strerror:
        return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return str(error) or type(error).__name__
