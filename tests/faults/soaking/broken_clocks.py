"""A deployment each of whose daemons has a wall clock of its own, which can be set an hour back or ahead while it runs.

The soak makes one for each round. libfaketime (the Debian package `faketime`) is loaded into the daemons, and not into tasks,
because a daemon passes its tasks only what the README names. Monotonic clocks are never changed, as on a real host.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from support.deployment import Deployment, Program

PACKAGE = "faketime"


def library() -> Path | None:
    """Return the library of libfaketime for programs with threads, or None if it is not installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


class ClockedDeployment(Deployment):
    """See above. Without clocks (`clocked` is false), it is a deployment as any other."""

    clocked = True

    def clock(self, name: str) -> Path:
        """Return the file that says how far the clocks of the daemons of this name are off."""
        return self.folder / f"clock-{name}"

    def set_clock(self, name: str, seconds: int) -> None:
        """Have the clocks of the daemons of this name be off by so much from now on."""
        draft = self.clock(f"{name}-draft")
        draft.write_text(f"{seconds:+d}\n")
        draft.replace(self.clock(name))

    def start(self, executable: str, *arguments: str, name: str = "", **variables: str) -> Program:
        """Start a daemon, with its clock where that of the last one of its name was."""
        known = name or executable
        if self.clocked and (found := library()) is not None:
            if not self.clock(known).exists():
                self.set_clock(known, 0)
            variables |= {
                "LD_PRELOAD": str(found),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock(known)),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        return super().start(executable, *arguments, name=name, **variables)

    def close(self) -> None:
        """End everything; the shared memory of daemons that were killed goes, too."""
        try:
            super().close()
        finally:
            for program in self.programs:
                for left in (f"faketime_shm_{program.pid}", f"sem.faketime_sem_{program.pid}"):
                    with contextlib.suppress(OSError):
                        os.unlink(f"/dev/shm/{left}")


