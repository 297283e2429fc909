"""One user with a server, agents and commands, all of them the real programs: for tests/integration and tests/faults.

Everything lies under one folder: `work`, where all programs and therefore tasks start; `state`, with the tokens; `tmp`. Each
daemon's standard error goes to a file of its own. `close` ends what was started, by pid, and fails if a process of any kind is
left, if a daemon left files in `tmp`, or if one of them printed a traceback. Tasks that are to be held until the test says so use
a `Gate`. A conftest.py that imports the fixture `deployment` imports the hook beside it as well.

Machines stand still at times: a test that is not about heartbeats uses `PATIENT`, one that waits for a lease `SHORT_LEASE`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psutil
import pytest

from daggyr.client import Client
from daggyr.tokens import read_token
from support import preloaded
from support.ended import Ended
from support.server_calls import ServerCalls, shown
from support.waiting import DEADLINE, Gate, is_gone, until

BIN = Path(sys.executable).parent
MARK = "INTEGRATION_TEST"  # a variable that all that is started inherits

# Of [server], as TOML. No silence of an agent is noticed, and no absence is too long: only a connection that breaks is seen.
PATIENT = "heartbeat = 30\nlease = 100"
# Who is cut off is given up after five seconds. Who is only slow is not: that takes ten seconds of silence before.
SHORT_LEASE = "heartbeat = 2.5\nlease = 5"

# A server with a pool of agents, as TOML.
FARM = f"""
[server]
{PATIENT}
[pools.farm]
executor = "agent"
"""

# What a user may have set, and what would change what programs do or say.
_OTHERS = ("DAGGYR_", "XDG_", "LC_", "GRPC_", "PG", "SLURM_", "SBATCH_", "SQUEUE_", "SCONTROL_")
_LOOKS = ("LANGUAGE", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")

Task = dict[str, Any]
Answer = TypeVar("Answer")


def plain_environment() -> dict[str, str]:
    """The variables of this process, but for those that make programs speak otherwise or of something else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS) and name not in _LOOKS}
    return {**kept, "LC_ALL": "C.UTF-8", "TERM": "xterm"}


def own_address() -> str:
    """An address of loopback for a server that is to be started there again, with a port of the system's choice.

    Nobody else takes ports of this host's other names (127.0.0.0/8), so that it is still free then.
    """
    return f"127.{'.'.join(str(1 + secrets.randbelow(254)) for _ in range(3))}:0"


def words(process: psutil.Process) -> list[str]:
    """A process's command line; empty if it has ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def follows(command: subprocess.Popen[str]) -> None:
    """Return once a `daggyr run` or `watch` says that it follows its run, which Ctrl-C then kills. Tasks may start before."""
    assert command.stderr is not None
    said = iter(command.stderr.readline, "")
    assert any(re.match(r"run \d+ [A-Za-z]+: [\d,]+ task", line) for line in said), "it has ended"


def task(*command: str, **keys: Any) -> Task:
    """A task's definition; keys of `details` and keys beside it alike."""
    details = ("script", "environment", "working_directory", "stdin", "timeout", "resources")
    inner = {key: keys.pop(key) for key in details if key in keys}
    return {"details": {"command": list(command), **inner}, **keys}


def shell(script: str, **keys: Any) -> Task:
    """A task that is a shell script."""
    return task("sh", "-c", script, **keys)


@dataclass
class Program:
    """A daemon that was started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        """What it wrote to standard error so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> int:
        """Its exit code, once it has ended by itself."""
        return self.process.wait(DEADLINE)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()


@dataclass
class Deployment:
    """See above. `folder` is new and empty."""

    folder: Path
    address: str = ""
    programs: list[Program] = field(default_factory=list)
    commands: list[subprocess.Popen[str]] = field(default_factory=list)
    passed: list[str] = field(default_factory=lambda: [MARK])  # variables of the daemons that their tasks inherit
    killed: bool = False  # a program was killed, so that it could not remove its files
    _calls: ServerCalls | None = None  # of the server that was asked last

    def __post_init__(self) -> None:
        self.work, self.state, self.temporary = (self.folder / name for name in ("work", "state", "tmp"))
        for path in (self.work, self.temporary):
            path.mkdir(parents=True)
        plain = plain_environment()
        self.environment = {
            **plain,
            "PATH": f"{BIN}{os.pathsep}{plain.get('PATH', os.defpath)}",
            "XDG_STATE_HOME": str(self.state),
            "TMPDIR": str(self.temporary),
            MARK: str(self.folder),
        }

    # -- daemons ------------------------------------------------------------------------------------------------------

    def start_server(self, *options: str, config: str = "", listen: str = "127.0.0.1:0") -> Program:
        """Start `daggyr-server` and wait until it takes connections; commands use it from now on. `config` is TOML."""
        ready = self.folder / f"ready-{len(self.programs)}"
        if config:
            (self.folder / "server.toml").write_text(config)
            options = (*options, "--config", str(self.folder / "server.toml"))
        program = self.start("daggyr-server", "--listen", listen, "--ready-file", str(ready), *options)
        until(lambda: ready.exists() or program.process.poll() is not None, "the server")
        assert ready.exists(), program.said()
        self.address = ready.read_text().strip()
        return program

    def start_agent(self, name: str, *options: str, coordinator: str = "", wait: bool = True) -> Program:
        """Start `daggyr-agent` and wait until it has joined; by default, it joins the pool `farm` with one core."""
        program = self.start(
            "daggyr-agent",
            *("--coordinator", coordinator or self.address, "--name", name, "--pool", "farm"),
            *(options if any(option.startswith("cores=") for option in options) else (*options, "--resource", "cores=1")),
            name=name,
        )
        if wait:
            until(
                lambda: program.process.poll() is not None or "connected to " in program.said(),
                f"the agent {name}",
            )
            assert program.process.poll() is None, program.said()
        return program

    def start(self, executable: str, *arguments: str, name: str = "", **variables: str) -> Program:
        """Start a daemon."""
        log = self.folder / f"{len(self.programs)}-{name or executable}.log"
        with log.open("wb") as stderr:
            process = preloaded.Popen(
                [BIN / executable, *arguments, *(f"--pass-environment={name}" for name in self.passed)],
                cwd=self.work,
                env={**self.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self.programs.append(Program(name or executable, process, log))
        return self.programs[-1]

    # -- commands -----------------------------------------------------------------------------------------------------

    def command(
        self, *arguments: str, input: str | None = None, program: Path | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        """Start `daggyr`, or a Python program in its place, and return at once."""
        server = {"DAGGYR_SERVER": self.address} if self.address else {}
        process = preloaded.Popen(
            [*([BIN / "daggyr"] if program is None else [sys.executable, "-P", program]), *arguments],
            cwd=self.work,
            env={**self.environment, **server, **variables},
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self.commands.append(process)
        return process

    def daggyr(self, *arguments: str, input: str | None = None, **variables: str) -> Ended:
        """Run `daggyr` to its end."""
        return self.ended(self.command(*arguments, input=input, **variables), input)

    def ended(self, process: subprocess.Popen[str], input: str | None = None) -> Ended:
        """A command, once it has ended."""
        out, err = process.communicate(input, timeout=DEADLINE)
        assert "Traceback" not in err, err
        return Ended(process.returncode, out, err)

    def bytes(self, *arguments: str) -> bytes:
        """What `daggyr` writes to standard output, as it is; it ends with 0."""
        environment = {**self.environment, "DAGGYR_SERVER": self.address}
        ended = preloaded.run(
            [BIN / "daggyr", *arguments], cwd=self.work, env=environment, capture_output=True, timeout=DEADLINE, check=True
        )
        return ended.stdout

    def json(self, *arguments: str, code: int = 0) -> Any:
        """What `daggyr --output json` prints; it ends with `code`."""
        ended = self.daggyr("--output", "json", *arguments)
        assert ended.code == code, ended.err
        return ended.json

    def spec(self, tasks: Mapping[str, Task], **keys: Any) -> str:
        """The path of a specification with these tasks, and other keys of a run."""
        path = self.folder / f"spec-{len(list(self.folder.glob('spec-*')))}.json"
        path.write_text(json.dumps({"tasks": tasks, **keys}))
        return str(path)

    # -- what the server is asked from this process -------------------------------------------------------------------

    def ask(self, question: Callable[[ServerCalls], Answer]) -> Answer:
        """The answer of the server that was started last. One that was started again at the same address has a new connection."""
        if self._calls is None or self._calls.address != self.address:
            self._hang_up()
            self._calls = ServerCalls(self.address, None if self.address.startswith("unix:") else self.token())
            return question(self._calls)
        try:
            return question(self._calls)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:  # type: ignore[attr-defined]
                raise
        self._hang_up()
        return self.ask(question)

    def _hang_up(self) -> None:
        if self._calls is not None:
            self._calls.close()
            self._calls = None

    def submit(self, tasks: Mapping[str, Task], **keys: Any) -> int:
        """Submit a run; returns its id."""
        document = Path(self.spec(tasks, **keys))
        return self.ask(lambda server: server.submit(document))

    def submit_document(self, document: str) -> int:
        """As `submit`, of any text."""
        path = self.folder / "document.json"
        path.write_text(document)
        return self.ask(lambda server: server.submit(path))

    def watch(self, run_id: int, code: int = 0) -> Any:
        """The run, once it has ended; `code` is 0 if it is to have completed, 1 if it is to have ended otherwise."""
        run = shown(self.ask(lambda server: server.ended(run_id)))
        assert (run["state"] != "COMPLETED") == bool(code), f"{run}{self.logs()}"
        return run

    def complete(self, tasks: Mapping[str, Task], code: int = 0, **keys: Any) -> Any:
        """Submit a run and return it once it has ended; `code` as for `watch`."""
        return self.watch(self.submit(tasks, **keys), code)

    def run(self, run_id: int) -> Any:
        """A run, as `show` tells it."""
        return self.ask(lambda server: server.run(run_id))

    def runs(self) -> list[Any]:
        """All runs, the newest first."""
        return self.ask(lambda server: server.runs())

    def tasks(self, run_id: int) -> list[Any]:
        """A run's tasks."""
        return self.ask(lambda server: server.tasks(run_id))

    def task(self, run_id: int, task_id: str) -> Any:
        """A task with its attempts and their output."""
        return self.ask(lambda server: server.task(run_id, task_id))

    def why(self, run_id: int, task_id: str) -> str:
        """What `why` says of a task."""
        return " ".join(self.ask(lambda server: server.why(run_id, task_id)))

    def pools(self) -> list[Any]:
        """The server's pools."""
        return self.ask(lambda server: server.pools())

    def agents(self) -> list[Any]:
        """The agents that the server knows."""
        return self.ask(lambda server: server.agents())

    def delete(self, run_id: int) -> None:
        """Take an ended run away."""
        self.ask(lambda server: server.delete(run_id))

    def states(self, run_id: int) -> dict[str, str]:
        """The states of a run's tasks."""
        return {each["task_id"]: each["state"] for each in self.tasks(run_id)}

    def running(self, run_id: int, task_id: str) -> None:
        """Return once the server knows that a task runs, which its agent tells a moment after the start; the task is held."""
        until(lambda: self.states(run_id)[task_id] == "RUNNING", f"{task_id} to be RUNNING")

    def attempts(self, run_id: int) -> dict[str, int]:
        """How many attempts a run's tasks had."""
        return {each["task_id"]: each["attempt_count"] for each in self.tasks(run_id)}

    def was_started_once(self, run_id: int) -> None:
        """Fails unless each task had one attempt that started: what is sent ahead may be asked back for a host that is idle."""
        for task_id, count in self.attempts(run_id).items():
            if count > 1:
                *before, last = [
                    (attempt["outcome"], attempt["start_time"]) for attempt in self.task(run_id, task_id)["attempts"]
                ]
                assert (set(before), last[0]) == ({("RETURNED", None)}, "SUCCEEDED"), task_id

    def goes_on(self) -> None:
        """Fails unless the server takes a run and brings it to its end."""
        assert self.complete({"goes_on": task("true")})["state"] == "COMPLETED"

    # -- what else tests need -----------------------------------------------------------------------------------------

    def gate(self, name: str = "held") -> Gate:
        """A new gate in the folder where tasks start."""
        os.mkfifo(self.work / f"{name}.gate")
        return Gate(self.work, name)

    def read(self, name: str) -> str:
        """A file that tasks wrote; empty if there is none."""
        path = self.work / name
        return path.read_text() if path.exists() else ""

    def token(self, role: str = "client") -> str:
        """The token that the server made."""
        return read_token(self.state / "daggyr" / f"{role}.token")

    def client(self) -> Client:
        """A client of the server; to be made in an event loop."""
        return Client(self.address, token=None if self.address.startswith("unix:") else self.token())

    def logs(self) -> str:
        """What all daemons wrote to standard error."""
        return "".join(f"\n--- {program.name} ({program.pid})\n{program.said()}" for program in self.programs)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything, agents before the server, and fail if something was left behind."""
        self._hang_up()
        for command in self.commands:
            if command.poll() is None:
                command.kill()
            command.wait()
            for stream in (command.stdin, command.stdout, command.stderr):
                if stream is not None:
                    stream.close()
        # Agents first: without a server, they wait for one to give their last results to.
        servers = [program for program in self.programs if program.name == "daggyr-server"]
        agents = [program for program in self.programs if program.name != "daggyr-server"]
        stubborn = [*_end(agents), *_end(servers)]
        # Nobody is there any more to end them. What belongs to a command or daemon that was killed does so a moment later.
        with contextlib.suppress(AssertionError):
            until(lambda: not list(self.processes()), "the end of all processes")
        left = {process.pid: " ".join(words(process)) for process in self.processes()}
        for pid in left:
            _kill(pid)
        assert not stubborn, f"these were not ended by SIGTERM: {stubborn}{self.logs()}"
        assert not left, f"processes that were left: {left}"
        assert "Traceback" not in self.logs(), self.logs()
        if not self.killed:
            assert not (files := list(self.temporary.iterdir())), f"files that were left: {files}"

    def processes(self) -> Iterable[psutil.Process]:
        """All processes that come from here and still run, whatever became of their parents."""
        mark = f"{MARK}={self.folder}".encode()
        for process in psutil.process_iter():
            try:
                if mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0") and not is_gone(process.pid):
                    yield process
            except OSError:
                continue


def _end(programs: list[Program]) -> list[str]:
    """End these at once; returns the names of those that had to be killed."""
    stubborn = []
    for program in programs:
        if program.process.poll() is None:
            program.process.terminate()
            program.process.send_signal(signal.SIGCONT)  # if the test stopped it
    for program in programs:
        try:
            program.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            stubborn.append(program.name)
            program.process.kill()
            program.process.wait()
    return stubborn


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(name="deployment")
def new_deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A user's empty folder; nothing runs yet."""
    made = Deployment(tmp_path)
    yield made
    made.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds what the daemons said to the report of a test that failed."""
    report: pytest.TestReport = yield
    funcargs: dict[str, Any] = getattr(item, "funcargs", {})
    if report.failed and isinstance(made := funcargs.get("deployment", funcargs.get("shared")), Deployment):
        report.sections.append(("standard error of the daemons", made.logs()))
    return report
