"""The only place that starts processes: how one is started, signalled and reaped.

An execution calls `Launcher.start` and, once the process has ended, `reap`. Nothing here waits, and nothing here knows
what an attempt is.

posix_spawn(3) was chosen by measuring: it forks without copying the agent's memory (as subprocess.Popen does on Linux), and
costs the agent 70 us a process where Popen costs 87 us. What it lacks is made up for here: the working directory is
changed for the moment of the call, and the program is looked up in the task's PATH. The child gets a session, and with
it a process group, of its own, default signals, an empty signal mask, and three descriptors: Python opens all others
close-on-exec (PEP 446), and so does gRPC.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

AGENT_VARIABLE = b"DAGGYR_AGENT_ID"

_DEFAULT_PATH = b"/usr/local/bin:/usr/bin:/bin"
_MAX_SHOWN = 300  # characters of a user's text in a note

# These are the host's, not the task's: the same task could start elsewhere, or here later.
_HOST_ERRORS = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
)


class StartRefusedError(Exception):
    """The task cannot be started, here or anywhere like here; the message is the note for its user."""


class HostError(Exception):
    """This host cannot start anything now (processes, descriptors or disk are used up); the message says what."""


@dataclass(slots=True)
class End:
    """How a process ended: one of `exit_code` and `signal` is set. CPU seconds include descendants it waited for."""

    exit_code: int | None
    signal: int | None
    cpu_seconds: float
    max_rss_bytes: int  # not honest below the agent's own size: see usage.PeakMemory


class Launcher:
    """Starts processes with the agent's environment less its DAGGYR_*, from the folder where the agent was started.

    To these is added AGENT_VARIABLE, by which the agent's next process finds what this one left running (`leftovers`).
    """

    def __init__(self, environment: Mapping[bytes, bytes], agent_id: str) -> None:
        self._environment = {name: value for name, value in environment.items() if not name.startswith(b"DAGGYR_")}
        self._environment[AGENT_VARIABLE] = agent_id.encode()
        self._home = os.open(".", os.O_PATH | os.O_DIRECTORY)
        self._null = os.open(os.devnull, os.O_RDONLY)
        # Handlers go with execve(2), ignored signals stay: Python's own (SIGPIPE), and what a nohup left us.
        self._ignored = tuple(number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN)

    def start(
        self,
        command: list[bytes],
        environment: Mapping[bytes, bytes],
        *,
        working_directory: str,
        stdin: str | None,
        stdout: int,
        stderr: int,
    ) -> int:
        """Start a process and return its pid; when this returns, the program has been executed (execve(2) succeeded).

        `environment` goes over the agent's. `stdout` and `stderr` are descriptors. The caller must `reap` the process.
        Raises StartRefusedError or HostError; then nothing was started.
        """
        if not command or not command[0]:
            raise StartRefusedError("the command is empty")
        full = {**self._environment, **environment}
        source = self._null if stdin is None else _text_file(stdin)
        away = False
        try:
            if working_directory:
                try:
                    os.chdir(working_directory)
                except (OSError, ValueError) as error:
                    raise _folder_fault(working_directory, error) from None
                away = True
            program = command[0] if b"/" in command[0] else _look_up(command[0], full.get(b"PATH", _DEFAULT_PATH))
            try:
                return os.posix_spawn(
                    program,
                    command,
                    full,
                    file_actions=(
                        (os.POSIX_SPAWN_DUP2, source, 0),
                        (os.POSIX_SPAWN_DUP2, stdout, 1),
                        (os.POSIX_SPAWN_DUP2, stderr, 2),
                    ),
                    setsid=True,
                    setsigmask=(),
                    setsigdef=self._ignored,
                )
            except ValueError as error:  # a NUL, or a name of a variable that is empty or holds '='
                raise StartRefusedError(f"the command or its environment cannot be passed on: {error}") from None
            except OSError as error:
                raise _start_fault(program, command, full, error) from None
        finally:
            if away:
                os.fchdir(self._home)
            if source != self._null:
                os.close(source)

    def close(self) -> None:
        os.close(self._home)
        os.close(self._null)


def reap(pid: int) -> End:
    """Take the end of a child that has ended (waits for it otherwise). Its pid may be another's right after."""
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return End(
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        max_rss_bytes=usage.ru_maxrss * 1024,
    )


def signal_group(leader: int, number: signal.Signals) -> bool:
    """Signal the process group of a child that was not reaped yet, so that no stranger can have its number.

    False if the agent may not (a program that changed its user).
    """
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True


def _text_file(text: str) -> int:
    """A descriptor to read `text` from: a file in memory, which unlike a pipe never makes the writer wait."""
    try:
        memory = os.memfd_create("stdin", os.MFD_CLOEXEC)
        try:
            view = memoryview(text.encode())
            while view:
                view = view[os.write(memory, view) :]
            # Opened again, so that the process can neither change it nor starts at its end.
            return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
        finally:
            os.close(memory)
    except OSError as error:
        raise HostError(f"cannot hold the standard input: {error.strerror}") from None


def _look_up(program: bytes, path: bytes) -> bytes:
    """The program's path, as execvp(3) finds it: relative entries of PATH count from the task's folder."""
    found_but = None
    for folder in path.split(b":"):
        candidate = os.path.join(folder or b".", program)  # noqa: PTH118
        try:
            status = os.stat(candidate)  # noqa: PTH116
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):
            if os.access(candidate, os.X_OK):
                return candidate
            found_but = found_but or candidate
    if found_but:
        raise StartRefusedError(f"{_shown(found_but)} is not executable: chmod +x it")
    raise StartRefusedError(f"no such program: {_shown(program)} is in none of the folders of PATH={_shown(path)}")


def _folder_fault(folder: str, error: OSError | ValueError) -> Exception:
    shown = _shown(folder.encode())
    if isinstance(error, FileNotFoundError):
        return StartRefusedError(f"no such folder: working_directory {shown} (relative ones count from {_here()})")
    reason = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, OSError) and error.errno in _HOST_ERRORS:
        return HostError(f"cannot enter working_directory {shown}: {reason}")
    return StartRefusedError(f"cannot enter working_directory {shown}: {reason}")


def _here() -> str:
    with contextlib.suppress(OSError):
        return os.getcwd()  # noqa: PTH109
    return "a folder that was removed"


def _start_fault(program: bytes, command: Sequence[bytes], environment: Mapping[bytes, bytes], error: OSError) -> Exception:
    shown = _shown(program)
    reason = error.strerror
    if error.errno in _HOST_ERRORS:
        return HostError(f"cannot start a process: {reason}")
    if error.errno == errno.E2BIG:
        size = sum(len(word) + 1 for word in command) + sum(len(name) + len(environment[name]) + 2 for name in environment)
        return StartRefusedError(f"the command and its environment are too long for this host: {size} bytes (execve(2))")
    if error.errno == errno.ENOENT:
        if os.path.lexists(program):
            return StartRefusedError(f"{shown} names an interpreter in its first line, or a loader, that is not there")
        return StartRefusedError(f"no such program: {shown}")
    if error.errno == errno.ENOEXEC:
        return StartRefusedError(f"{shown} is neither a binary for this host nor a script with a first line like #!/bin/sh")
    if error.errno == errno.EACCES:
        if os.path.isdir(program):  # noqa: PTH112
            return StartRefusedError(f"{shown} is a folder, not a program")
        return StartRefusedError(f"{shown} is not executable: {reason}")
    return StartRefusedError(f"cannot start {shown}: {reason}")


def _shown(text: bytes) -> str:
    shown = repr(text.decode(errors="replace"))
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "...'"
