"""A process that has loaded one of DaggyR's programs and forks it each time that preloaded.py asks: a start without the imports.

    python -P preloading.py SOCKET MODULE ...

SOCKET is an inherited descriptor; a message is a length, four bytes, and a pickle. The first one that is sent says whether this
works here. A `Start` brings the descriptors of the new process with it and is answered with its pid. A pid is answered with that
pid and its wait status, or with zeros while the process lives. This process ends when the other end closes its socket.

What is forked is as if it was executed: its words and environment in /proc, its name, its descriptors, its standard streams, its
folder and its limits. It then runs the program's own file, and its interpreter ends as any does. This process itself never runs
anything, has no second thread, and reaps nothing that nobody asked for, so that no pid is used again too early.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import mmap
import os
import pickle
import pkgutil
import resource
import runpy
import signal
import socket
import struct
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

LENGTH = struct.Struct("<I")
MOST_DESCRIPTORS = 32
LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC)

# prctl(2): PR_SET_NAME, PR_SET_MM with PR_SET_MM_MAP, which takes no privilege, and sbrk(2)'s end of the heap.
_SET_NAME = 15
_SET_MM, _SET_MM_MAP = 35, 14
_FIELDS = struct.Struct("@11QPIi")  # struct prctl_mm_map; the last three are the auxiliary vector, its size and a file: none
_HIGH = 200  # descriptors wait here until they have their places


class Start(NamedTuple):
    """A program to start; `descriptors` are the numbers that those that came with this are to have."""

    words: list[str]  # as in /proc: from `file` on, they are the program's own
    file: str
    folder: str
    environment: dict[str, str]
    descriptors: list[int]
    limits: list[tuple[int, int]]
    new_session: bool


def send(connection: socket.socket, message: bool | int | tuple[Any, ...], descriptors: list[int] | None = None) -> None:
    data = pickle.dumps(tuple(message) if isinstance(message, tuple) else message)  # a class has another name at the other end
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([LENGTH.pack(len(data))], rights)
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """The next message and the descriptors that came with it. Raises EOFError when the other end is closed."""
    head, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, MOST_DESCRIPTORS)
    head += _exactly(connection, LENGTH.size - len(head))
    return pickle.loads(_exactly(connection, LENGTH.unpack(head)[0])), descriptors


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


class _Shown:
    """What /proc shows of this process: its words and its environment. The memory is kept for as long as the process lives."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        arguments = b"".join(os.fsencode(word) + b"\0" for word in words)
        variables = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
        self._memory = mmap.mmap(-1, max(1, len(arguments) + len(variables)), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.write(arguments + variables)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        middle = begin + len(arguments)
        # proc(5), /proc/PID/stat: the fields after the name, which may hold anything, begin with the third.
        fields = [
            int(field) if field.lstrip("-").isdigit() else 0
            for field in Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ]
        start_code, end_code, start_stack = fields[23:26]
        start_data, end_data, start_brk = fields[42:45]
        libc = ctypes.CDLL(None)
        libc.sbrk.restype = ctypes.c_void_p
        places = _FIELDS.pack(
            *(start_code, end_code, start_data, end_data, start_brk, libc.sbrk(0), start_stack),
            *(begin, middle, middle, middle + len(variables), 0, 0, -1),
        )
        self.works = libc.prctl(_SET_MM, _SET_MM_MAP, places, ctypes.c_ulong(len(places)), ctypes.c_ulong(0)) == 0


def _place(descriptors: list[int], places: list[int]) -> None:
    """Give the descriptors these numbers, and close all others."""
    waiting = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _HIGH) for descriptor in descriptors]
    for descriptor, place in zip(waiting, places, strict=True):
        os.dup2(descriptor, place)
    begin = 3
    for place in sorted({place for place in places if place > 2}):
        os.closerange(begin, place)
        begin = place + 1
    os.closerange(begin, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 65_536 else 65_536)


def _open_streams() -> None:
    """The standard streams of a Python that was just started (create_stdio in CPython's pylifecycle.c)."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        buffer = open(number, "wb" if number else "rb", closefd=False)  # noqa: SIM115  # it is the process's
        stream = io.TextIOWrapper(
            buffer,
            encoding=old.encoding,
            errors=old.errors,
            newline="\n" if number else None,
            line_buffering=number == 2 or os.isatty(number),
        )
        stream.mode = "w" if number else "r"  # type: ignore[misc]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _become(start: Start, descriptors: list[int], added: dict[str, str]) -> _Shown:
    """Be the process that was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if start.new_session:
        os.setsid()
    _place(descriptors, start.descriptors)
    for limit, values in zip(LIMITS, start.limits, strict=True):
        if resource.getrlimit(limit) != values:
            resource.setrlimit(limit, values)
    os.chdir(start.folder)
    os.environ.clear()
    os.environ.update(start.environment)
    os.environ.update(added)
    tempfile.tempdir = None
    _open_streams()
    own = start.words.index(start.file)
    sys.argv = start.words[own:]
    executed = start.words[0] if "-P" in start.words[:own] else start.file
    ctypes.CDLL(None).prctl(_SET_NAME, os.fsencode(Path(executed).name)[:15], 0, 0, 0)
    if executed == start.file:
        sys.path.insert(0, str(Path(start.file).parent))  # as for any script without -P
    return _Shown(start.words, start.environment)


def serve(connection: socket.socket, added: dict[str, str]) -> tuple[Start, _Shown]:
    """Answer until the other end is closed, which ends this process. Returns in the processes that are forked, and only there."""
    while True:
        try:
            message, descriptors = receive(connection)
        except (EOFError, ConnectionError):
            os._exit(0)
        if isinstance(message, int):
            send(connection, os.waitpid(message, os.WNOHANG))
            continue
        start = Start(*message)
        pid = os.fork()
        if pid == 0:
            os.close(connection.detach())
            try:
                shown = _become(start, descriptors, added)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.write(2, f"cannot be started as it was asked for: {error}\n".encode())
                os._exit(127)
            return start, shown
        for descriptor in descriptors:
            os.close(descriptor)
        send(connection, pid)


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this
    first = dict(entry.split("=", 1) for entry in os.fsdecode(Path("/proc/self/environ").read_bytes()).split("\0") if entry)
    for name in sys.argv[2:]:
        module = importlib.import_module(name.removesuffix(".*"))
        if name.endswith(".*"):
            for found in pkgutil.walk_packages(module.__path__, f"{module.__name__}."):
                importlib.import_module(found.name)
    # Python itself sets variables as it starts, for instance LC_CTYPE where there is no locale (PEP 538).
    added = {name: value for name, value in os.environ.items() if first.get(name) != value}
    probed = _Shown(["preloading"], dict(os.environ))
    send(connection, probed.works and threading.active_count() == 1 and len(list(Path("/proc/self/task").iterdir())) == 1)
    gc.collect()
    gc.freeze()
    start, _shown = serve(connection, added)
    if "-m" in start.words[: start.words.index(start.file)]:
        runpy.run_module(start.file, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(start.file, run_name="__main__")


if __name__ == "__main__":
    main()
