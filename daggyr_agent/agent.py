"""The agent as a whole: puts its parts together, and ends them in the way that was asked for.

`main` runs it once. There are four ways to its end. Drain: the coordinator asks, or SIGUSR1 comes, and what runs is finished.
Stop: SIGTERM or SIGINT comes, and what runs is ended. Halt: a second signal comes, or the lifeline is cut, and everything is
killed at once. Or the coordinator refuses the agent. After each of them, no process of any attempt is left. An agent that is
killed cannot see to that: its next process, with the same state folder, begins by ending what was left, and delivers the
results that nobody has acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Mapping

from daggyr.attempts.outcome import Cause
from daggyr.control_group import ControlGroup
from daggyr.daemon import Terminal
from daggyr.environment import passes

from .attempts import Attempts
from .capture import Captures
from .cgroup import OomKills
from .config import Config
from .connection import Connection
from .descendants import Descendants, become_subreaper
from .execution_context import DEFAULT_GRACE, ExecutionContext
from .leftovers import end_leftovers
from .limits import most_attempts, offered
from .noop import Noop
from .outbox import Outbox
from .process import Launcher
from .resources import Ledger
from .room import Room
from .session import Membership
from .state import StateFolder
from .usage import PeakMemory
from .watch import Watch
from .work import Work

_DELIVERY_SECONDS = 5.0  # for the last results of an agent that was stopped
_HALT_SECONDS = 5.0  # for killed processes to be gone; only a process that waits for a device takes longer than an instant

_TIDY_SECONDS = 1.0  # between two looks for orphans of running attempts that have ended

_log = logging.getLogger(__name__)


class Agent:
    """One agent. It is made and run in one event loop, in the main thread, whose children are the orphans (`descendants`)."""

    def __init__(self, config: Config, state: StateFolder, environment: Mapping[bytes, bytes]) -> None:
        """End what an earlier process left running, which takes some seconds at most, and take up its results.

        Raises OSError if this system lacks what agents need (Linux 5.3: pidfd_open(2)).
        """
        become_subreaper()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it was left ignored, children would vanish unreaped (wait(2))
        journal = state.journal
        if not state.is_new:
            end_leftovers(state.agent_id, journal.running, _HALT_SECONDS)
        journal.begin()
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._config = config
        self._terminal = Terminal()
        self._news = asyncio.Event()
        self._progress = asyncio.Event()  # set when fewer attempts are held, or fewer results are undelivered
        self._halted = asyncio.Event()
        self._finishing: asyncio.Task[None] | None = None
        self._stopping = False
        self._outbox = Outbox(journal, self._news.set, self._progress.set)
        self._descendants = Descendants(loop, journal)
        self._captures = Captures(state.output, max(journal.output_numbers(), default=0) + 1)
        for update, number in journal.results():
            self._outbox.restore(update, self._captures.kept(number, update.finished))
        passed = {name: value for name, value in environment.items() if passes(os.fsdecode(name), config.pass_environment)}
        self._launcher = Launcher(passed, state.agent_id)
        self._watch = Watch(loop)
        group = ControlGroup()
        self._context = ExecutionContext(
            loop=loop,
            launcher=self._launcher,
            captures=self._captures,
            descendants=self._descendants,
            watch=self._watch,
            oom_kills=OomKills(group),
            peaks=PeakMemory(),
            journal=journal,
            kill_grace=DEFAULT_GRACE,
        )
        self._room = Room(state.output, state.mend)
        most, limit = most_attempts(config.resources["cores"], group)
        resources, shortage = (config.resources, "") if config.noop else offered(config.resources, most, limit)
        if shortage:
            _log.warning("this agent %s", shortage)
        self._work: Work = (
            Noop(self._outbox)
            if config.noop
            else Attempts(
                self._context,
                Ledger(resources),
                self._outbox,
                self._progress.set,
                room=self._room,
                most=most,
                beat=self._beat,
            )
        )
        self._watch.after_each_look(self._tidy)
        self._tidied = 0.0
        self._membership = Membership(
            agent_id=state.agent_id,
            agent_key=state.agent_key,
            incarnation=secrets.token_hex(8),
            name=config.name,
            pool=config.pool,
            resources=resources,
            shortage=shortage,
            tracker_id=journal.tracker_id,
            epoch=journal.epoch,
            ends=None if config.ends_in is None else loop.time() + config.ends_in,
            life=journal.life,
        )
        self._connection = Connection(config, self._membership, self._work, self._outbox, self._news, self.drain, self.stop)

    def _beat(self) -> None:
        """Tell the coordinator at once what heartbeats tell."""
        self._connection.beat()

    async def run(self) -> None:
        """Work until drained, stopped or halted. Raises RefusedError."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # A SIGINT that is ignored was meant so by a script's `&`: Ctrl-C is not for what the script left in the background.
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                self._loop.add_signal_handler(number, self.stop)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup(1) has it ignored.
            self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        self._loop.add_signal_handler(signal.SIGUSR1, self.drain)
        if self._config.lifeline is not None:
            os.set_inheritable(self._config.lifeline, False)
            self._loop.add_reader(self._config.lifeline, self._feel_lifeline, self._config.lifeline)
        if self._membership.ends is not None:
            self._loop.call_at(self._membership.ends, self._time_is_over)
        connection = asyncio.create_task(self._connection.run())
        halted = asyncio.create_task(self._halted.wait())
        try:
            await asyncio.wait((connection, halted), return_when=asyncio.FIRST_COMPLETED)
            if connection.done():
                connection.result()
        finally:
            await self._close(connection, halted)

    def drain(self) -> None:
        """Take nothing new, hand back what has not started, finish what runs, deliver the results, leave."""
        if self._finishing is None:
            _log.info("draining: %d attempts are finished first", self._work.running)
            # The coordinator is told first, as in `stop`, because it may not have asked.
            self._membership.draining = True
            self._connection.beat()
            self._work.close("the agent is draining")
            self._finishing = asyncio.create_task(self._finish(None))

    def stop(self, cause: Cause = Cause.STOP) -> None:
        """End what runs, hand back what has not started, deliver the results, leave. When it is called again, halt."""
        if self._stopping:
            self.halt("asked a second time")
            return
        self._stopping = True
        _log.info("stopping: %d attempts are ended", self._work.running)
        if self._finishing is not None:
            self._finishing.cancel()
        # The coordinator is told first, or it would send back at once what is handed back to it.
        self._membership.draining = True
        self._connection.beat()
        self._work.stop(DEFAULT_GRACE, cause)
        self._finishing = asyncio.create_task(self._finish(_DELIVERY_SECONDS))

    def _time_is_over(self) -> None:
        if not self._stopping:
            _log.info("the time that this host has is over")
            self.stop(Cause.OVER)

    def _hang_up(self) -> None:
        """Do nothing unless the terminal is gone, because each session reads the token and the certificates again."""
        if self._terminal.is_gone():
            self.stop()
        else:
            _log.info("the token and the certificates are read again for the next session; what runs goes on")

    def halt(self, reason: str) -> None:
        """Kill everything and leave at once."""
        if not self._halted.is_set():
            _log.info("leaving at once: %s", reason)
            self._kill_all()
            self._halted.set()

    async def _finish(self, delivery_seconds: float | None) -> None:
        """Leave once nothing is held and, within the given time if there is one, everything is delivered."""
        while self._work.running or self._work.waiting:
            self._progress.clear()
            await self._progress.wait()
        try:
            async with asyncio.timeout(delivery_seconds):
                while not self._outbox.empty:
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            _log.warning("no coordinator took the last results within %g s: they are kept for the next start", delivery_seconds)
        self._connection.leave()

    def _tidy(self) -> None:
        if self._loop.time() - self._tidied >= _TIDY_SECONDS:
            self._tidied = self._loop.time()
            self._descendants.tidy()

    def _feel_lifeline(self, descriptor: int) -> None:
        try:
            alive = bool(os.read(descriptor, 4096))
        except BlockingIOError:
            alive = True
        except OSError:
            alive = False
        if not alive:
            self._loop.remove_reader(descriptor)
            self.halt("the lifeline was cut")

    def _kill_all(self) -> None:
        self._watch.close()
        context = self._context
        with context.lock:
            context.leaving = True
        if not self._descendants.end_everything(_HALT_SECONDS, context.lock, lambda: context.starting):
            _log.error("some processes did not end within %g s of SIGKILL", _HALT_SECONDS)

    async def _close(self, *tasks: asyncio.Task[object]) -> None:
        if not self._halted.is_set():
            self._kill_all()
        pending = [task for task in (*tasks, self._finishing) if task is not None]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        self._descendants.close()
        self._captures.close()
        self._room.close()
        self._launcher.close()
