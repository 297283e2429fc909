"""Questions to one shell on a target, one at a time, each with all of its answers.

`session.py` has one for what it fetches and one for what it watches. A question that was given up by its asker does no
harm: what is still answered to it is passed over.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator

from daggyr_server.executors.ssh.shell import Shell


class Questions:
    """Asks, for several tasks."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self._lock = asyncio.Lock()
        self._tickets = map(str, itertools.count(1))
        self._open: str | None = None  # the ticket of what was not answered to its end

    async def ask(self, script: str) -> AsyncGenerator[list[str], None]:
        """The words of each line that calls of remote.sh answer. To be closed by its reader. Raises TargetFault.

        Who gets a line that a base64 block follows reads that from `shell` first.
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
        """All lines, of questions that no block answers. Raises TargetFault."""
        return [words async for words in self.ask(script)]

    def _is_end(self, words: list[str]) -> bool:
        if words[:2] == ["Z", self._open]:
            self._open = None
            return True
        return False
