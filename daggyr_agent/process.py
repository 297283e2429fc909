"""The only place that starts processes: how a process is started, signalled and reaped.

An execution calls `Launcher.start` in a thread of its own and, once the process has ended, `reap`. Nothing here knows what an
attempt is.

posix_spawn(3) was chosen by measuring: it forks without copying the agent's memory, and costs the agent less than
subprocess.Popen (68 us against 87 us of processor). It is called through ctypes, because os.posix_spawn keeps the
interpreter's lock until the new program has been loaded, 130 us and more in which no other thread could go on, and because
it cannot set a working directory. The child gets a session, and with it a process group, of its own, default signals, an empty
signal mask, and three descriptors: Python opens all others close-on-exec (PEP 446), and so does gRPC.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from daggyr.attempts import startable
from daggyr.attempts.startable import NotStartable

from .start_faults import HostError, LostError, fault_of, find_program

AGENT_VARIABLE = b"DAGGYR_AGENT_ID"

_DEFAULT_PATH = b"/usr/local/bin:/usr/bin:/bin"

# spawn.h; both structures are opaque, and smaller than this with every C library.
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80
_STRUCTURE_BYTES = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_pointer = ctypes.c_void_p
_libc.posix_spawn.argtypes = (_pointer, ctypes.c_char_p, _pointer, _pointer, _pointer, _pointer)

# The same library for calls of a microsecond. They keep the interpreter's lock, because giving it away costs more than the call.
_brief = ctypes.PyDLL(None)
_brief.posix_spawn_file_actions_init.argtypes = (_pointer,)
_brief.posix_spawn_file_actions_destroy.argtypes = (_pointer,)
_brief.posix_spawn_file_actions_adddup2.argtypes = (_pointer, ctypes.c_int, ctypes.c_int)
_brief.posix_spawn_file_actions_addchdir_np.argtypes = (_pointer, ctypes.c_char_p)  # glibc 2.29, musl 1.1.24


@dataclass(slots=True)
class End:
    """How a process ended: one of `exit_code` and `signal` is set. CPU seconds include descendants it waited for."""

    exit_code: int | None
    signal: int | None
    cpu_seconds: float
    max_rss_bytes: int  # This says nothing below the agent's own size, see usage.PeakMemory.


class FileActions:
    """What a child does with its descriptors and its folder before the program is executed (posix_spawn_file_actions_init(3)).

    This object alone owns what C allocates for it. That is freed when the last reference to the object goes, and in no other
    way, so nobody who keeps one can lose it, and nobody can free it twice.
    """

    __slots__ = ("structure",)

    def __init__(self, stdin: int, stdout: int, stderr: int, working_directory: bytes) -> None:
        """Raises HostError if memory is used up."""
        structure = ctypes.create_string_buffer(_STRUCTURE_BYTES)
        _check(_brief.posix_spawn_file_actions_init(structure))
        self.structure = structure
        for target, descriptor in enumerate((stdin, stdout, stderr)):
            _check(_brief.posix_spawn_file_actions_adddup2(structure, descriptor, target))
        if working_directory:
            _check(_brief.posix_spawn_file_actions_addchdir_np(structure, working_directory))

    def __del__(self) -> None:
        if hasattr(self, "structure"):  # otherwise C has allocated nothing
            _brief.posix_spawn_file_actions_destroy(self.structure)


class Outputs:
    """The descriptors of the two files that a process writes to, and what of a start depends on them alone.

    Whoever opened the descriptors holds this object as long as they are open. Most attempts write nothing and their files serve
    the next attempt, so the file actions of an ordinary start (no standard input, no folder) are kept here, and go with it.
    """

    __slots__ = ("ordinary", "stderr", "stdout")

    def __init__(self, stdout: int, stderr: int) -> None:
        """Two open descriptors above 2, so that none of them is overwritten before it is copied to its place."""
        self.stdout = stdout
        self.stderr = stderr
        self.ordinary: FileActions | None = None  # made by the launcher at the first start that can use it


class Launcher:
    """Starts processes in the folder where the agent was started, with the environment that it is given, without its DAGGYR_*.

    AGENT_VARIABLE is added, by which the agent's next process finds what this one left running (`leftovers`).
    """

    def __init__(self, environment: Mapping[bytes, bytes], agent_id: str) -> None:
        self._environment = {
            name: b"%b=%b" % (name, value) for name, value in environment.items() if not name.startswith(b"DAGGYR_")
        }
        self._environment[AGENT_VARIABLE] = b"%b=%b" % (AGENT_VARIABLE, agent_id.encode())
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._nowhere = os.open(os.devnull, os.O_WRONLY)
        self._attributes = ctypes.create_string_buffer(_STRUCTURE_BYTES)
        _check(_libc.posix_spawnattr_init(self._attributes))
        _check(_libc.posix_spawnattr_setflags(self._attributes, ctypes.c_short(_SETSIGDEF | _SETSIGMASK | _SETSID)))
        # execve(2) takes handlers away and keeps signals ignored: Python's own (SIGPIPE), and what a nohup(1) left ignored.
        ignored = [number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN]
        for numbers, setter in (
            (ignored, _libc.posix_spawnattr_setsigdefault),
            ([], _libc.posix_spawnattr_setsigmask),
        ):
            signals = ctypes.create_string_buffer(_STRUCTURE_BYTES)
            _check(_libc.sigemptyset(signals))
            for number in numbers:
                _check(_libc.sigaddset(signals, int(number)))
            _check(setter(self._attributes, signals))

    def start(
        self,
        command: list[bytes],
        environment: Mapping[bytes, bytes],
        *,
        working_directory: bytes,
        stdin: str | None,
        outputs: Outputs,
    ) -> int:
        """Start a process and return its pid. When this returns, the program has been executed (execve(2) succeeded).

        The task has passed `startable.check`. `environment` goes over the agent's. The caller has to `reap` the process. Other
        threads go on meanwhile. Raises NotStartable, HostError or LostError, if nothing was started.
        """
        entries = {**self._environment}
        for name, value in environment.items():
            entries[name] = b"%b=%b" % (name, value)
        program = command[0]
        if b"/" not in program:
            path = entries.get(b"PATH", b"PATH=" + _DEFAULT_PATH)[len(b"PATH=") :]
            program = find_program(program, path, working_directory)
        source = self._null if stdin is None else _text_file(stdin)
        try:
            actions = self._actions(source, outputs, working_directory)
            pid = ctypes.c_int()
            number = _libc.posix_spawn(
                ctypes.byref(pid),
                program,
                actions.structure,
                self._attributes,
                (ctypes.c_char_p * (len(command) + 1))(*command),
                (ctypes.c_char_p * (len(entries) + 1))(*entries.values()),
            )
        finally:
            if source != self._null:
                os.close(source)
        if number:
            if number == errno.E2BIG:
                raise startable.too_long([*command, *map(entries.__getitem__, environment)])
            raise fault_of(number, program, working_directory)
        return pid.value

    def try_to_start(self) -> str | None:
        """Start a process that does nothing, in the caller's thread. Returns why that is impossible now, or None."""
        outputs = Outputs(self._nowhere, self._nowhere)
        try:
            pid = self.start([b"/bin/sh", b"-c", b":"], {}, working_directory=b"", stdin=None, outputs=outputs)
        except NotStartable:  # There is no such program: the kernel made a process to find that out.
            return None
        except (HostError, LostError) as fault:
            return str(fault)
        try:
            reap(pid)
        except ChildProcessError:  # The agent is leaving, and has reaped everything itself.
            return None
        return None

    def close(self) -> None:
        os.close(self._null)
        os.close(self._nowhere)

    def _actions(self, stdin: int, outputs: Outputs, working_directory: bytes) -> FileActions:
        if working_directory or stdin != self._null:
            return FileActions(stdin, outputs.stdout, outputs.stderr, working_directory)
        if outputs.ordinary is None:
            outputs.ordinary = FileActions(stdin, outputs.stdout, outputs.stderr, b"")
        return outputs.ordinary


def reap(pid: int) -> End:
    """Take the end of a child that has ended; wait for the end of one that has not. Its pid may be another's right after."""
    _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return End(
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        max_rss_bytes=usage.ru_maxrss * 1024,
    )


def signal_group(leader: int, number: signal.Signals) -> bool:
    """Signal the process group of a child. The child was not reaped yet, so that no stranger can have its number.

    Returns False if the agent may not, because the program has changed its user.
    """
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True


def _check(number: int) -> None:
    if number:
        raise HostError(f"a process cannot be started: {os.strerror(number)}")


def _text_file(text: str) -> int:
    """A descriptor to read `text` from. It is a file in memory, because a pipe could make the writer wait."""
    try:
        memory = os.memfd_create("stdin", os.MFD_CLOEXEC)
        try:
            view = memoryview(text.encode())
            while view:
                view = view[os.write(memory, view) :]
            # The file is opened again, so that the process cannot change it and starts at its beginning.
            return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
        finally:
            os.close(memory)
    except OSError as error:
        raise HostError(f"standard input cannot be held in memory: {error.strerror}") from None
