"""How late the event loop is. `scrapes` starts one `Lag` and reads the largest value of the last minute.

Once a second it asks for a turn and notes how late that came, because any caller may have waited as long. It measures only, and
holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque

PERIOD = 1.0  # seconds from sample to sample
SAMPLES = 60  # so many are kept


class Lag:
    """The lag of the event loop in which it is made. Life: start, read, stop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._samples: deque[float] = deque([0.0], maxlen=SAMPLES)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> float:
        """The largest lag of the last minute. Scrapes are too far apart to show the lag of their own moment only."""
        return max(self._samples)

    def start(self) -> None:
        """Take samples from now on."""
        asked = self._loop.time() + PERIOD
        self._timer = self._loop.call_at(asked, self._sample, asked)

    def _sample(self, asked: float) -> None:
        self._samples.append(max(0.0, self._loop.time() - asked))
        self.start()

    def stop(self) -> None:
        """Take no more samples. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
