"""What all executions share: the parts of the agent that they call, the lock between them, and the grace of what has timed out.

`agent` makes the one object, `attempts` gives it to each execution, and the session's welcome sets the grace. It decides nothing.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from .capture import Captures
from .cgroup import OomKills
from .descendants import Descendants
from .journal import Journal
from .process import Launcher
from .usage import PeakMemory
from .watch import Watch

# Seconds from SIGTERM to SIGKILL for what the agent ends because it is stopped, and where its coordinator names no other grace.
DEFAULT_GRACE = 10.0


@dataclass(slots=True)
class ExecutionContext:
    """The parts of the agent and of its host that every execution uses. There is one for all of them."""

    loop: asyncio.AbstractEventLoop
    launcher: Launcher
    captures: Captures
    descendants: Descendants
    watch: Watch
    oom_kills: OomKills
    peaks: PeakMemory
    journal: Journal  # for the event loop alone
    kill_grace: float  # seconds from SIGTERM to SIGKILL at a timeout; the coordinator says it with each welcome
    # Whoever signals, reaps or looks up a process holds the lock, and whoever reads or changes the two below:
    lock: threading.Lock = field(default_factory=threading.Lock)
    starting: int = 0  # so many processes are just being started
    leaving: bool = False  # no process is started any more
