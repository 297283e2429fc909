"""The two clocks of this host: the coordinator gives them to the driver, which is told the time by nothing else.

Tests give other clocks, to let them jump. Nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from daggyr_server.core.moment import Moment

Clock = Callable[[], Moment]


def host_clocks() -> Moment:
    """Now, by this host's clocks. The steady one is that of the event loop, which its timers go by."""
    return Moment(time.monotonic(), time.time())
