"""Questions to one shell on a target, one at a time, each with all of its answers.

`fetching.py` and `watching.py` have one each. A question that its asker has given up does no harm, because what is still answered
to it is passed over. Nothing here knows what is asked.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator

from daggyr_server.executors.ssh.shell import Shell


class Questions:
    """Asks one shell, for several asyncio tasks."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self._lock = asyncio.Lock()
        self._tickets = map(str, itertools.count(1))
        self._open: str | None = None  # the ticket of what was not answered to its end

    async def ask(self, script: str) -> AsyncGenerator[list[str], None]:
        """Yield the words of each line that the calls of `script` answer. Its reader closes it. Raises TargetFault.

        After a line that a base64 block follows, the reader takes the block from `shell` before the next line.
        """
        async with self._lock:
            while self._open is not None:
                self._is_end((await self.shell.line()).split(" "))
            ticket = self._open = next(self._tickets)
            await self.shell.send(f"dg_here\n{script}dg_done {ticket}\n".encode())
            while True:
                words = (await self.shell.line()).split(" ")
                if self._is_end(words):
                    return
                yield words

    async def answers(self, script: str) -> list[list[str]]:
        """All lines that answer a script whose answers have no block. Raises TargetFault."""
        return [words async for words in self.ask(script)]

    def _is_end(self, words: list[str]) -> bool:
        if words[:2] == ["Z", self._open]:
            self._open = None
            return True
        return False
