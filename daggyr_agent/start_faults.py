"""Why a process cannot be started here: where its program is, and what the kernel's error means.

The launcher calls `find_program` before it starts a process, and `fault_of` when the start has failed. The sentences for people
are those of daggyr.attempts.startable. Nothing here starts anything.
"""

from __future__ import annotations

import errno
import os
import stat

from daggyr.attempts import startable
from daggyr.attempts.startable import NotStartable

_FIRST_LINE_BYTES = 256  # The kernel looks at so many bytes of a script (BINPRM_BUF_SIZE).

# These errors are the host's, not the task's: the same task could start elsewhere, or here later.
_HOST_ERRORS = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class HostError(Exception):
    """This host cannot start anything now (processes, descriptors or disk are used up); the message says what."""


class LostError(Exception):
    """What became of an attempt is not known, or nothing says whether the task or the host is at fault; the message says why.

    It is LOST, which is counted: a task that meets this everywhere has an end, and no host pauses because of it.
    """


def find_program(program: bytes, path: bytes, working_directory: bytes) -> bytes:
    """The path of a program, found as execvp(3) finds it. Relative entries of PATH count from the task's folder.

    Raises NotStartable, HostError or LostError.
    """
    found_but = None
    for folder in path.split(b":"):
        candidate = os.path.join(folder or b".", program)  # noqa: PTH118
        seen_from_here = os.path.join(working_directory, candidate)  # noqa: PTH118
        try:
            status = os.stat(seen_from_here)  # noqa: PTH116
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            if os.access(seen_from_here, os.X_OK):
                return candidate
            found_but = found_but or candidate
    _check_folder(working_directory)
    if found_but:
        raise NotStartable(startable.not_executable(_text(found_but)))
    raise NotStartable(startable.not_in_path(_text(program), _text(path)))


def fault_of(number: int, program: bytes, working_directory: bytes) -> Exception:
    """What the error `number` of posix_spawn(3) means: a NotStartable, a HostError or a LostError, to be raised.

    The number does not say whether the folder or the program is at fault, so both are looked at.
    """
    reason = os.strerror(number)
    if number in _HOST_ERRORS:
        return HostError(f"a process cannot be started: {reason}")
    if number == errno.EIO:  # The program's file is read now, and it is the task's.
        return LostError(startable.not_executed(_text(program), reason))
    try:
        _check_folder(working_directory)
    except (NotStartable, HostError, LostError) as fault:
        return fault
    seen_from_here = os.path.join(working_directory, program)  # noqa: PTH118
    text = _text(program)
    if number == errno.ENOENT:
        if os.path.lexists(seen_from_here):
            return NotStartable(_first_line_fault(text, seen_from_here))
        return NotStartable(startable.no_program(text, _here(), _text(working_directory)))
    if number == errno.ENOEXEC:
        return NotStartable(startable.no_format(text))
    if number == errno.EACCES:
        if os.path.isdir(seen_from_here):  # noqa: PTH112
            return NotStartable(startable.is_folder(text))
        if os.path.exists(seen_from_here) and not os.access(seen_from_here, os.X_OK):  # noqa: PTH110
            return NotStartable(startable.not_executable(text))
    return NotStartable(startable.not_executed(text, reason))


def _first_line_fault(program: str, path: bytes) -> str:
    """Why a program that is there is not found: what its first line names, or its loader, is not there (execve(2))."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(_FIRST_LINE_BYTES)
    except OSError:
        beginning = b""
    if not beginning.startswith(b"#!"):
        return startable.no_loader(program)
    line = beginning.partition(b"\n")[0][2:]
    if line.endswith(b"\r"):
        return startable.windows_line_ends(program)
    return startable.no_interpreter(program, _text(line.split(maxsplit=1)[0]) if line.split() else "")


def _check_folder(folder: bytes) -> None:
    """Raise what is wrong with a task's folder, if anything is."""
    if not folder:
        return
    try:
        os.close(os.open(os.path.join(folder, b"."), os.O_PATH | os.O_DIRECTORY))  # noqa: PTH118
    except FileNotFoundError:
        raise NotStartable(startable.no_folder(_text(folder), _here())) from None
    except OSError as error:
        kind = HostError if error.errno in _HOST_ERRORS else LostError if error.errno == errno.EIO else NotStartable
        raise kind(startable.not_entered(_text(folder), os.strerror(error.errno or 0))) from None


def _here() -> str:
    """The folder where tasks start, in words."""
    try:
        return startable.shown(os.getcwdb())  # noqa: PTH109
    except FileNotFoundError:
        return "a folder that was removed"


def _text(of_the_task: bytes) -> str:
    return of_the_task.decode(errors="replace")
