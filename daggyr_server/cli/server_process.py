"""Starts the process of the server for `daggyr run`, on a private socket and with a lifeline.

`commands/run` makes a `ServerProcess` as early as it can, because a short run needs most of its time for the start of the server.
`own_server` then waits for the process and ends it. For the same reason this file imports neither asyncio nor gRPC.

The lifeline is a pipe of which the server has the read end. When this process closes the other end, or dies in any way, the
server sees the end of file and ends everything that it started. The server has a session of its own, so that Ctrl-C reaches this
process only, which then decides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from daggyr.private_folder import PrivateFolder, abandoned
from daggyr_server.cli.errors import CommandError

_PREFIX = "daggyr-run-"


class ServerProcess:
    """A server that is starting. If nobody ends it, it ends with this process, and its folder is removed."""

    def __init__(self, options: Sequence[str], *, tracker: str | None = None) -> None:
        """Start the process. Raises CommandError if that is not possible.

        `options` are arguments of the server's program. The tracker's address is passed in the environment, where nobody else
        reads it.
        """
        for folder in abandoned(_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            self._private = PrivateFolder(_PREFIX)
        except OSError as error:
            raise CommandError(f"the server cannot be started: {error.strerror}") from None
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
        """Whether the server accepts connections."""
        return (self._folder / "ready").exists()

    def cut_lifeline(self) -> None:
        """Make the server end everything that it started, and then itself."""
        os.close(self._lifeline)

    def remove_folder(self) -> None:
        """Remove the folder of the socket. The process must have ended."""
        self._private.remove()

    @property
    def _folder(self) -> Path:
        return self._private.path

    def _start(self, options: Sequence[str], tracker: str | None, lifeline: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                sys.executable,
                "-P",  # so that a file in the user's folder does not replace a module
                "-m",
                "daggyr_server.main",
                "--listen",
                self.address,
                "--ready-file",
                str(self._folder / "ready"),
                "--private-folder",
                str(self._folder),
                "--no-metrics",  # the address in its configuration belongs to the server that runs for good
                "--pass-environment",  # tasks get the variables that the user's shell would give them
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
    """The server's environment: this process's, without the variable that `main` set. Tasks inherit it without DAGGYR_*.

    A tracker's address may hold a password. Everybody can see arguments, but only the user sees the environment (proc(5)).
    """
    environment = dict(os.environ)
    if environment.get("GRPC_VERBOSITY") == "NONE":
        del environment["GRPC_VERBOSITY"]
    if tracker is not None:
        environment["DAGGYR_TRACKER"] = tracker
    return environment
