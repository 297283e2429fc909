"""Starts the process of the server that `daggyr run` brings along, on a private socket and at the end of a lifeline.

`commands/run` makes a `ServerProcess` as early as it can, because the server takes longer to start than all else that a short run
needs; `own_server` then waits for it and ends it. It imports neither asyncio nor gRPC, for the same reason.

The server holds the read end of a pipe, its lifeline: when this process closes the other end, or dies in any way, the server sees
the end of file and ends everything that it started. It has a session of its own, so that Ctrl-C reaches this process only, which
then decides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from daggyr.private_folder import PrivateFolder, abandoned
from daggyr_server.cli.faults import Fault

_PREFIX = "daggyr-run-"


class ServerProcess:
    """A server that is starting. Should nobody end it, it ends with this process, and so does its folder."""

    def __init__(self, options: Sequence[str], *, tracker: str | None = None) -> None:
        """`options` go to the server's program as arguments, and the tracker's address in its environment, where nobody else
        reads it. Raises Fault if no process can be started."""
        for folder in abandoned(_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            self._private = PrivateFolder(_PREFIX)
        except OSError as error:
            raise Fault(f"the server cannot be started: {error.strerror}") from None
        self.address = f"unix:{self._folder}/server.sock"
        read_end, self._lifeline = os.pipe()
        try:
            self.popen = self._start(options, tracker, read_end)
        except BaseException:
            os.close(self._lifeline)
            self._private.remove()
            raise
        finally:
            os.close(read_end)

    def is_ready(self) -> bool:
        """Whether the server takes connections."""
        return (self._folder / "ready").exists()

    def cut_lifeline(self) -> None:
        """The server ends everything and then itself."""
        os.close(self._lifeline)

    def remove_folder(self) -> None:
        """Once the process has ended."""
        self._private.remove()

    @property
    def _folder(self) -> Path:
        return self._private.path

    def _start(self, options: Sequence[str], tracker: str | None, lifeline: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                sys.executable,
                "-P",  # a file of the user's folder must not stand in for a module
                "-m",
                "daggyr_server.main",
                "--listen",
                self.address,
                "--ready-file",
                str(self._folder / "ready"),
                "--private-folder",
                str(self._folder),
                "--no-metrics",  # those of its configuration are for the server that runs for good
                "--pass-environment",  # tasks get all that the user's shell would give them
                "*",
                "--lifeline",
                str(lifeline),
                "--log-level",
                "warning",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=(lifeline,),
            start_new_session=True,
            env=_environment(tracker),
        )


def _environment(tracker: str | None) -> dict[str, str]:
    """This process's, without what `main` set for itself: tasks inherit it, less all DAGGYR_*.

    A tracker's address may hold a password: arguments are for everyone to see, an environment for its user only (proc(5)).
    """
    environment = dict(os.environ)
    if environment.get("GRPC_VERBOSITY") == "NONE":
        del environment["GRPC_VERBOSITY"]
    if tracker is not None:
        environment["DAGGYR_TRACKER"] = tracker
    return environment
