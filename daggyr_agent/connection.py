"""Keeps the agent connected: opens sessions one after another, with pauses that grow, and tells a refusal from an absence.

The agent runs one Connection for its life. It waits for a coordinator that is not there for ever. A refusal ends the agent
only before the first welcome, because an agent that was welcomed has attempts and results that are worth waiting for. Attempts
go on whatever happens here.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

import grpc

from daggyr.address import AddressError, check_address, check_exposure
from daggyr.backoff import Backoff
from daggyr.channel import open_channel, token_metadata
from daggyr.tls_faults import tls_fault
from daggyr.tokens import TokenError, read_token, token_file
from daggyr.v1.agents_pb2_grpc import AgentsStub

from .config import Config
from .outbox import Outbox
from .session import CoordinatorSession, Membership, SessionError
from .usage import HostUsage
from .work import Work

_MAX_ADDRESS = 4_096  # characters that are read of a file with an address
_SHORTEST_PAUSE = 0.1  # seconds
_SHORT_SESSION = 1.0
_LONGEST_PAUSE = 5.0
_LONGEST_PAUSE_OF_NONSENSE = 60.0  # The coordinator says that this agent makes no sense, and will say so again.

_REFUSALS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.UNIMPLEMENTED,  # a server, but not a coordinator
    }
)

_log = logging.getLogger(__name__)


class RefusedError(Exception):
    """The coordinator refuses this agent, or the agent cannot even ask. The message is one line for a user."""


class Connection:
    """Sessions with one coordinator."""

    def __init__(
        self,
        config: Config,
        membership: Membership,
        work: Work,
        outbox: Outbox,
        news: asyncio.Event,
        drain: Callable[[], None],
        orphaned: Callable[[], None],
    ) -> None:
        """`news` and `drain` are the session's. `orphaned` is called when nobody has answered for the configured time."""
        self._orphaned = orphaned
        self._config = config
        self._membership = membership
        self._work = work
        self._outbox = outbox
        self._news = news
        self._drain = drain
        self._usage = HostUsage()
        self._session: CoordinatorSession | None = None
        self._leaving = asyncio.Event()
        self._address = config.coordinator  # of the last session; a file may name another one for the next
        self._alone_since = asyncio.get_running_loop().time()
        self._said = ""
        self._refusal: grpc.StatusCode | None = None  # with which the last session was refused, if it was

    def beat(self) -> None:
        """Send a heartbeat now, if there is a session."""
        if self._session is not None:
            self._session.beat()

    def leave(self) -> None:
        """Send what is due, end the session and open no other. `run` returns soon after."""
        self._leaving.set()
        if self._session is not None:
            self._session.leave()

    async def run(self) -> None:
        """Keep a session open until `leave`. Raises RefusedError."""
        backoff = Backoff(_SHORTEST_PAUSE, _LONGEST_PAUSE, jitter=0.5)
        loop = asyncio.get_running_loop()
        while not self._leaving.is_set():
            begun = loop.time()
            welcomed = await self._one_session()
            if welcomed:
                self._alone_since = loop.time()
            elif (most := self._config.orphan_seconds) is not None and loop.time() >= self._alone_since + most:
                _log.error("no coordinator answered for %g s, so that this agent ends", most)
                self._orphaned()
            pause = next_pause(backoff, lasted=loop.time() - begun if welcomed else None, refusal=self._refusal)
            if not self._leaving.is_set():
                try:
                    async with asyncio.timeout(pause):
                        await self._leaving.wait()
                except TimeoutError:
                    pass

    async def _one_session(self) -> bool:
        """Open one session and wait for its end. Returns whether it was welcomed. Raises RefusedError."""
        token = None
        self._refusal = None
        try:
            self._address = self._named()
            token = self._token()
            check_exposure(self._address, token, self._config.tls, insecure=self._config.insecure)
            # Each session has a channel of its own, because one that has failed waits by its own clock before it tries again.
            channel = open_channel(self._address, tls=self._config.tls)
        except (TokenError, AddressError) as error:
            if not self._membership.welcomed:
                raise RefusedError(str(error)) from None
            self._say(logging.ERROR, str(error))
            return False
        try:
            session = self._session = CoordinatorSession(
                AgentsStub(channel).Session(metadata=token_metadata(token)),
                membership=self._membership,
                work=self._work,
                outbox=self._outbox,
                usage=self._usage,
                news=self._news,
                drain=self._drain,
                on_welcome=self._welcomed,
            )
            try:
                await session.run()
            except SessionError as error:
                self._explain(error, token)
            return session.welcomed
        finally:
            self._session = None
            await channel.close()

    def _named(self) -> str:
        """The coordinator's address. Raises AddressError."""
        path = self._config.coordinator_file
        if path is None:
            return self._config.coordinator
        try:
            with path.open(encoding="utf-8") as file:
                return check_address(file.read(_MAX_ADDRESS).strip())
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise AddressError(f"{path} names no coordinator: {why}") from None

    def _token(self) -> str | None:
        """The token; read for each session, so that a new one is found. A unix socket needs none, unless a file is named."""
        if self._config.token_file is not None:
            return read_token(self._config.token_file)
        if self._address.startswith("unix:"):
            return None
        path = token_file("agent", os.environ)
        return read_token(path) if path.exists() else None

    def _welcomed(self) -> None:
        self._say(logging.INFO, f"connected to {self._address} as {self._membership.name}")

    def _explain(self, error: SessionError, token: str | None) -> None:
        """Log why a session ended, or raise RefusedError if there is to be no other."""
        address = self._address
        if error.code is grpc.StatusCode.ABORTED:
            raise RefusedError(f"{address} ended this agent: {error}")
        if error.code in _REFUSALS:
            self._refusal = error.code
            if not self._membership.welcomed and not self._token_is_new(error, token):
                raise RefusedError(f"{address} refused this agent: {error}{_hint(error, token)}")
            self._say(logging.ERROR, f"{address} refused this agent, which goes on and tries again: {error}")
        elif self._membership.welcomed:
            self._say(logging.WARNING, f"no session with {address}, the agent goes on and tries again: {error}")
        else:
            self._say(logging.INFO, f"waiting for a coordinator at {address}: {self._reason(error)}")

    def _reason(self, error: SessionError) -> str:
        tls = self._config.tls is not None
        return tls_fault(str(error), self._address, tls=tls, option="--coordinator") or str(error)

    def _token_is_new(self, error: SessionError, token: str | None) -> bool:
        """Whether the server made its token only after this agent had looked for it."""
        if error.code is not grpc.StatusCode.UNAUTHENTICATED:
            return False
        try:
            return self._token() != token
        except TokenError:
            return False

    def _say(self, level: int, words: str) -> None:
        """Log these words, unless they are the same as the last time."""
        if words != self._said:
            self._said = words
            _log.log(level, "%s", words)


def next_pause(backoff: Backoff, *, lasted: float | None, refusal: grpc.StatusCode | None) -> float:
    """Seconds before the next session. They grow until a session was worth the name.

    `lasted` is how long the last session lasted, in seconds, or None if it was not welcomed. `refusal` is the status with which
    it was refused, welcomed or not. A session that ended as soon as it had begun, or that made no sense to the coordinator, would
    again.
    """
    if lasted is not None and lasted >= _SHORT_SESSION and refusal is None:
        backoff.reset()
    return backoff.next(longest=_LONGEST_PAUSE_OF_NONSENSE if refusal is grpc.StatusCode.INVALID_ARGUMENT else None)


def _hint(error: SessionError, token: str | None) -> str:
    if error.code is grpc.StatusCode.UNAUTHENTICATED and token is None:  # There is a folder that was looked in.
        return f" (there is no {token_file('agent', os.environ)}: name a copy of the server's agent.token with --token-file)"
    return ""
