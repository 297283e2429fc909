"""What a coordinator reads again without an end to its work: its tokens and its certificates.

`daggyr-server` makes one `Renewal`, calls `read_again` when it gets SIGHUP, and has `watch` run beside the rest. Files that
cannot be used are told of in the log, and what was read before stays in use. Nothing here ever logs a token.
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
    """A listener."""

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
        """`read_tokens` gives None where no listener wants any, and raises TokenError; `renewed` is told of new ones."""
        self._listeners = listeners
        self._read_tokens = read_tokens
        self._tls = tls
        self._renewed = renewed
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()

    async def read_again(self) -> None:
        """Take what the files hold now."""
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
        """Warn of certificates that end, now and each day; runs until it is cancelled."""
        while self._tls is not None:
            await self.warn()
            await asyncio.sleep(DAY)

    async def warn(self) -> None:
        """Warn of certificates that have ended or are about to."""
        if self._tls is not None:
            for sentence in await asyncio.to_thread(expiry.warnings, self._tls, self._clock()):
                log.warning("%s", sentence)
