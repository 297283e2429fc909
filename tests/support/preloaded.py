"""Starts DaggyR's programs as `subprocess` does, without their imports: a whole run of the tests starts them two thousand times.

    with preloaded.Popen([BIN / "daggyr-server", "--listen", ...], env=..., ...) as process: ...
    ended = preloaded.run([BIN / "daggyr", "runs"], ...)
    process = await preloaded.create_subprocess_exec(BIN / "daggyr", "runs", ...)

Tests call these in the place of those of `subprocess` and `asyncio`, with the same arguments. In a worker of pytest-xdist, the
process is forked by one that has loaded the program already (preloading.py; one for each program and each environment that a
Python looks at as it starts); everything else is as if it was executed. Where that cannot be (no such worker, an old kernel, an
option that is not known here), it is executed. How programs start is tested by tests that use `subprocess` itself: those of the
README, of imports, of standard streams, of odd machines.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import os
import resource
import select
import socket
import subprocess
import sys
import threading
from asyncio.streams import FlowControlMixin
from pathlib import Path
from typing import IO, Any, cast

from support.preloading import LIMITS, Start, receive, send

BIN = Path(sys.executable).parent

# The programs, with the modules that they load sooner or later; `.*` are all of a package.
_PROGRAMS = {
    "daggyr": ("daggyr_server.cli.*", "daggyr_server.spec.*", "daggyr.client.*"),
    "daggyr-server": (
        "daggyr_server.main",
        "daggyr_server.serving",
        "daggyr_server.copies",
        "daggyr_server.executors.agents.*",
        "daggyr_server.trackers.memory.*",
        "daggyr_server.trackers.sql.*",
        "grpc_health.v1.health",
        "grpc_reflection.v1alpha.reflection",
    ),
    "daggyr-agent": ("daggyr_agent.*",),
}
# What a program sets, where it is not set, before it loads gRPC.
_SETS = {"daggyr": {"GRPC_VERBOSITY": "NONE"}}
# Who sets one of these wants to see how a program is loaded.
_WATCHED = ("PYTHONPROFILEIMPORTTIME", "PYTHONVERBOSE")
# What of an environment Python, C's library and gRPC look at when they are loaded. Each other value has a process of its own.
_LOOKED_AT = ("GRPC_", "LANG", "LC_", "LD_", "MALLOC_", "PYTHON", "TZ", "COVERAGE", "FAKETIME", "SSL_", "OPENSSL_", "HYPOTHESIS")
_MOST = 8  # such processes in this one


class _Preloaded:
    """A process of preloading.py, for one program and one environment."""

    def __init__(self, modules: tuple[str, ...], environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, "-P", str(Path(__file__).with_name("preloading.py")), str(theirs.fileno()), *modules]
            self._process = subprocess.Popen(words, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._connection = ours
        self._lock = threading.Lock()
        try:
            self.works = bool(receive(ours)[0])
        except (EOFError, ConnectionError):
            self.works = False

    def ask(self, message: Start | int, descriptors: list[int] | None = None) -> Any:
        with self._lock:
            send(self._connection, message, descriptors)
            return receive(self._connection)[0]

    def end(self) -> None:
        self._connection.close()
        self._process.wait()


_preloaded: dict[tuple[str, tuple[tuple[str, str], ...]], _Preloaded] = {}
_starting = threading.Lock()


def end() -> None:
    """End what was started here to start others. The worker calls it before it looks for what is left."""
    while _preloaded:
        _preloaded.popitem()[1].end()


atexit.register(end)


def _program(words: list[str]) -> tuple[str, str] | None:
    """Which program these words are, and the file that Python executes; None if it is none of ours."""
    if words[0] == sys.executable and len(words) > 2 and words[1] == "-P":
        for ending, program in (("_agent.py", "daggyr-agent"), ("_server.py", "daggyr-server"), ("_command.py", "daggyr")):
            if words[2].endswith(ending):  # a file of the tests that differs in something from the program
                return program, words[2]
    if words[:4] == [sys.executable, "-P", "-m", "daggyr_agent"]:
        return "daggyr-agent", "daggyr_agent"
    path = Path(words[0])
    return (path.name, words[0]) if path.parent == BIN and path.name in _PROGRAMS else None


def _that_starts(program: str, environment: dict[str, str]) -> _Preloaded | None:
    looked_at = {name: value for name, value in environment.items() if name.startswith(_LOOKED_AT)}
    key = program, tuple(sorted(looked_at.items()))
    with _starting:
        if key not in _preloaded:
            if len(_preloaded) >= _MOST:
                return None
            others = {name: value for name, value in os.environ.items() if not name.startswith((*_LOOKED_AT, "DAGGYR_", "XDG_"))}
            _preloaded[key] = _Preloaded(_PROGRAMS[program], {**others, **_SETS.get(program, {}), **looked_at})
        return _preloaded[key] if _preloaded[key].works else None


class _Forked(subprocess.Popen[Any]):
    """As its base class, but that another process has forked it, which knows how it ended."""

    _by: _Preloaded
    _pidfd = -1

    def _execute_child(self, *arguments: Any) -> None:
        given = _execute_child.bind(self, *arguments).arguments
        words = [os.fsdecode(word) for word in given["args"]]
        environment = {os.fsdecode(name): os.fsdecode(value) for name, value in (given["env"] or os.environ).items()}
        program = _program(words)
        unknown = ["preexec_fn", "shell", "gid", "gids", "uid", "umask", "process_group"]
        if given["executable"] != given["args"][0]:
            unknown.append("executable")
        others = any(given.get(name) not in (None, -1, False) for name in unknown) or any(
            name in environment for name in _WATCHED
        )
        by = None if program is None or others or not given["close_fds"] else _that_starts(program[0], environment)
        if by is None or program is None:
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        self._by = by
        descriptors = {
            0: given["p2cread"],
            1: given["c2pwrite"],
            2: given["errwrite"],
            **{each: each for each in given["pass_fds"]},
        }
        start = Start(
            words=words if words[0] == sys.executable else [sys.executable, *words],  # as the file's first line has it
            file=program[1],
            folder=os.fsdecode(given["cwd"] or Path.cwd()),
            environment=environment,
            descriptors=list(descriptors),
            limits=[resource.getrlimit(limit) for limit in LIMITS],
            new_session=bool(given["start_new_session"]),
        )
        self.pid = by.ask(start, [number if given_one == -1 else given_one for number, given_one in descriptors.items()])
        self._child_created = True
        self._pidfd = os.pidfd_open(self.pid)
        self._close_pipe_fds(  # type: ignore[attr-defined]
            *(given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._pidfd == -1:
            return super()._try_wait(wait_flags)  # type: ignore[misc,no-any-return]
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        if not ended.poll(0 if wait_flags & os.WNOHANG else None):
            return 0, 0
        pid, status = self._by.ask(self.pid)
        os.close(self._pidfd)
        return pid, status

    def _internal_poll(self, *arguments: Any, **keys: Any) -> int | None:
        if self._pidfd == -1:
            return super()._internal_poll(*arguments, **keys)  # type: ignore[misc,no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid == self.pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


class _Process:
    """What tests use of `asyncio.subprocess.Process`, of a process that was forked elsewhere."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None

    async def connect(self) -> None:
        """Have the event loop read and write the pipes; it then owns and closes them."""
        loop = asyncio.get_running_loop()
        if self._process.stdin is not None:
            transport, protocol = await loop.connect_write_pipe(lambda: FlowControlMixin(loop), self._process.stdin)
            self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        self.stdout = await self._reader(self._process.stdout)
        self.stderr = await self._reader(self._process.stderr)

    async def _reader(self, pipe: IO[bytes] | None) -> asyncio.StreamReader | None:
        if pipe is None:
            return None
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        return reader

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> int:
        return await asyncio.to_thread(self._process.wait)

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        out, err, _ = await asyncio.gather(_all(self.stdout), _all(self.stderr), self._feed(input))
        await self.wait()
        return out, err

    async def _feed(self, input: bytes | None) -> None:
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.stdin.write(input or b"")
                await self.stdin.drain()
            self.stdin.close()


async def _all(stream: asyncio.StreamReader | None) -> bytes | None:
    return None if stream is None else await stream.read()


async def create_subprocess_exec(*words: Any, **keys: Any) -> asyncio.subprocess.Process:
    """As `asyncio.create_subprocess_exec`."""
    if Popen is subprocess.Popen:
        return await asyncio.create_subprocess_exec(*words, **keys)
    process = _Process(Popen(words, bufsize=0, **keys))
    await process.connect()
    return cast(asyncio.subprocess.Process, process)


_execute_child = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]

# A worker of pytest-xdist has this variable. Who runs a few tests by hand has the programs executed.
Popen: type[subprocess.Popen[Any]] = _Forked if "PYTEST_XDIST_WORKER" in os.environ else subprocess.Popen


def run(words: list[Any], *, input: Any = None, capture_output: bool = False, timeout: float | None = None, check: bool = False,
        **keys: Any) -> subprocess.CompletedProcess[Any]:  # fmt: skip
    """As `subprocess.run`."""
    if input is not None:
        keys["stdin"] = subprocess.PIPE
    if capture_output:
        keys["stdout"] = keys["stderr"] = subprocess.PIPE
    with Popen(words, **keys) as process:
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
        ended = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        ended.check_returncode()
    return ended
