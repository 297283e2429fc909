"""What `[pools.NAME]` with `executor = "ssh"` may set: the targets, how to log in there, and how to know them.

The server checks these Structs; `executor.py`, `target.py` and `connection.py` read them. Nothing here opens a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_TARGETS = 4_096
_Text = Annotated[str, Meta(min_length=1, max_length=1_024)]
Units = Annotated[int, Meta(ge=0, le=2**53)]


class TargetSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """One target. `~/.ssh/config` and OpenSSH's defaults say what is not given; `host` may be an alias there.

    Of the `resources`, `cores` and `memory_mb` are asked of the target if they are not given. `jump` is [USER@]HOST[:PORT] to go
    through. `host_key` is the one key that the target must have, as in a .pub file; `host_ca` is the key of an authority that has
    signed the target's.
    """

    host: _Text
    name: _Text | None = None  # for people and for what the tracker keeps; the host unless given
    port: Annotated[int, Meta(ge=1, le=65_535)] | None = None
    user: _Text | None = None
    private_key_file: Path | None = None
    jump: _Text | None = None
    host_key: _Text | None = None
    host_ca: _Text | None = None
    resources: dict[str, Units] = {}

    @property
    def known_as(self) -> str:
        return self.name or self.host

    def __post_init__(self) -> None:
        if self.host_key and self.host_ca:
            raise ValueError("`host_key` and `host_ca` exclude each other; give one of them")
        if self.resources.get("cores") == 0:
            raise ValueError("`resources.cores` is 0, and every task needs one unless it says otherwise; leave the target out")


class SshSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """The pool. `directory` and `working_directory` are on the targets, where relative ones count from the account's home."""

    targets: Annotated[list[TargetSettings], Meta(min_length=1, max_length=MAX_TARGETS)]
    known_hosts: Path | None = None  # ~/.ssh/known_hosts, and what ~/.ssh/config says, unless given
    ssh_config: Path | None = None  # ~/.ssh/config unless given
    insecure_trust_any_host_key: bool = False
    directory: str = ""  # where attempts have their folders; ~/.local/state/daggyr unless given
    working_directory: str = ""  # where tasks start; home unless given
    lost_after: Annotated[float, Meta(ge=1)] | None = None  # seconds out of reach, then what a target runs is LOST

    def __post_init__(self) -> None:
        names = [target.known_as for target in self.targets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two targets are called {twice[0]!r}; give each a `name` of its own")
        if self.insecure_trust_any_host_key and (self.known_hosts or any(t.host_key or t.host_ca for t in self.targets)):
            raise ValueError("`insecure_trust_any_host_key` makes `known_hosts`, `host_key` and `host_ca` useless; leave one out")
        for setting in ("directory", "working_directory"):
            if "\0" in getattr(self, setting) or "\n" in getattr(self, setting):
                raise ValueError(f"`{setting}` holds a line break or a NUL")
