"""`Pools` opens the SSH pools of a test on a real sshd, as many as the test wants. The fixture `pools` makes one of these."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from executor_harness import Harness
from executor_kinds import opened, ssh_settings
from support.sshd_server import SshdServer

from daggyr.attempts.keys import ident_of, name_of
from daggyr.v1.task_pb2 import AttemptKey
from daggyr_server.executors.context import ExecutorContext
from daggyr_server.executors.ssh.executor import SshExecutor


class Pools:
    """Opens pools of a server, each with the attempts' folders in `directory`."""

    def __init__(self, server: SshdServer, directory: Path, stack: AsyncExitStack) -> None:
        self.server = server
        self.directory = directory
        self._stack = stack

    async def open(
        self, *targets: dict[str, Any], context: ExecutorContext | None = None, pool: str = "pool", **settings: Any
    ) -> Harness:
        """Return an open pool. Its targets need not be within reach."""
        given = ssh_settings(self.server, *targets, **{"directory": str(self.directory), **settings})
        return await self._stack.enter_async_context(opened(SshExecutor, context, pool=pool, **given))

    async def available(self, *targets: dict[str, Any], **settings: Any) -> Harness:
        harness = await self.open(*targets, **settings)
        await harness.host()
        return harness

    def folders(self) -> list[str]:
        """The folders of attempts, of all pools."""
        return sorted(path.parent.name for path in self.directory.glob("ssh/*/*/*/lock"))

    def folder(self, key: AttemptKey) -> Path:
        (found,) = self.directory.glob(f"ssh/*/*/{name_of(ident_of(key))}")
        return found
