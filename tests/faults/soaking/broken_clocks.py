"""A deployment each of whose daemons has a wall clock of its own, which can be set an hour back or ahead while it runs.

The soak makes one for each round. A small library (turned_clock.c) is compiled and loaded into the daemons. It is not loaded
into tasks, because a daemon passes its tasks only the variables that the README names. Monotonic clocks are never changed, as on
a real host. libfaketime is not used, because its clock_nanosleep refuses each sleep of Python's (EINVAL, with 0.9.10).
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

from support.deployment import Deployment, Program

PACKAGE = "gcc libc6-dev"


def compiler() -> str | None:
    """Return the C compiler, or None if there is none."""
    return shutil.which("cc")


class ClockedDeployment(Deployment):
    """See above. If `clocked` is false, it is a deployment as any other."""

    clocked = True

    def clock(self, name: str) -> Path:
        """Return the file that says how far the clocks of the daemons of this name are off."""
        return self.folder / f"clock-{name}"

    def set_clock(self, name: str, seconds: int) -> None:
        """Have the clocks of the daemons of this name be off by so much from now on."""
        with open(self.clock(name), "r+b" if self.clock(name).exists() else "wb", buffering=0) as file:
            file.write(struct.pack("q", seconds))

    def start(self, executable: str, *arguments: str, name: str = "", **variables: str) -> Program:
        """Start a daemon. Its clock stays where the clock of the last one of its name was."""
        known = name or executable
        if self.clocked:
            if not self.clock(known).exists():
                self.set_clock(known, 0)
            variables |= {"LD_PRELOAD": str(self._library()), "TURNED_CLOCK": str(self.clock(known))}
        return super().start(executable, *arguments, name=name, **variables)

    def _library(self) -> Path:
        """Return the compiled library, which is made once for each deployment."""
        made = self.folder / "turned_clock.so"
        if not made.exists():
            compiled = compiler()
            assert compiled is not None
            source = Path(__file__).with_name("turned_clock.c")
            subprocess.run([compiled, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
        return made
