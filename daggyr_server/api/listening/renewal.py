"""Tokens and certificates, read again while the coordinator works.

`daggyr-server` makes one `Renewal`, calls `read_again` when it gets SIGHUP, and has `watch` run beside the rest. If a file cannot
be used, the log says so and what was read before stays in use. Nothing here ever logs a token.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from daggyr.tokens import TokenError
from daggyr_server.api.listening import expiry
from daggyr_server.api.listening.authentication import Tokens
from daggyr_server.api.listening.binding import ListenerError
from daggyr_server.config import Tls

log = logging.getLogger(__name__)

DAY = 86_400.0  # seconds


class Renewable(Protocol):
    """A listener whose tokens and certificates can be replaced."""

    def replace_tokens(self, tokens: Tokens) -> None: ...

    def read_certificates_again(self) -> None: ...


class Renewal:
    """Of one coordinator. Used from one event loop."""

    def __init__(
        self,
        listeners: Sequence[Renewable],
        read_tokens: Callable[[], Tokens | None],
        tls: Tls | None,
        renewed: Callable[[Tokens], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`read_tokens` returns None where no listener wants tokens, and raises TokenError; `renewed` gets new ones."""
        self._listeners = listeners
        self._read_tokens = read_tokens
        self._tls = tls
        self._renewed = renewed
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()

    async def read_again(self) -> None:
        """Use what the files hold now, as far as it can be used."""
        async with self._one_at_a_time:
            good = True
            try:
                tokens = await asyncio.to_thread(self._read_tokens)
            except TokenError as error:
                log.error("the tokens stay as they were: %s", error)
                good = False
            else:
                if tokens is not None:
                    for listener in self._listeners:
                        listener.replace_tokens(tokens)
                    self._renewed(tokens)
            try:
                for listener in self._listeners:
                    await asyncio.to_thread(listener.read_certificates_again)
            except ListenerError as error:
                log.error("the certificates stay as they were: %s", error)
                good = False
            if good:
                log.info("the tokens%s were read again", " and certificates" if self._tls is not None else "")
        await self.warn()

    async def watch(self) -> None:
        """Warn of certificates that end, now and once a day, until it is cancelled."""
        while self._tls is not None:
            await self.warn()
            await asyncio.sleep(DAY)

    async def warn(self) -> None:
        """Warn of certificates that have ended or are about to."""
        if self._tls is not None:
            for sentence in await asyncio.to_thread(expiry.warnings, self._tls, self._clock()):
                log.warning("%s", sentence)
