"""One session with the coordinator: the stream from hello to its end, and what each message on it does.

`connection` opens sessions one after another. A session has three tasks of its own, which end with it: one reads and
passes the coordinator's messages to the work, the outbox and the follows; one writes what they have to tell; one makes
heartbeats. What outlives a session (the fence, the work, the outbox) is given to it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from daggyr.channel import PROTOCOL_VERSION
from daggyr.v1.agents_pb2 import AgentMessage, CoordinatorMessage, Heartbeat, Hello, Welcome

from . import __version__
from .execution import DEFAULT_GRACE
from .follow import Follows
from .outbox import Outbox
from .usage import HostUsage
from .work import Work

WELCOME_SECONDS: Final = 30.0

_DEFAULT_HEARTBEAT = 5.0  # seconds, where a welcome names none
_LEAVE_SECONDS = 1.0

_log = logging.getLogger(__name__)

Call = Any  # grpc.aio.StreamStreamCall[AgentMessage, CoordinatorMessage]: generic in the stubs only


class SessionError(Exception):
    """A session that ended otherwise than by our leaving; `code` is the call's status, or None if it was ours to end it."""

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Fence:
    """Which coordinator this agent works for: that of the last welcome."""

    tracker_id: str = ""
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is, for its hello."""

    agent_id: str
    incarnation: str
    name: str
    pool: str
    resources: Mapping[str, int]


class Session:
    """A session on a call that was just opened; run it once."""

    def __init__(
        self,
        call: Call,
        identity: Identity,
        fence: Fence,
        work: Work,
        outbox: Outbox,
        usage: HostUsage,
        *,
        draining: bool,
        on_welcome: Any,
        on_drain: Any,
    ) -> None:
        self._call = call
