"""Commands that stay until a run ends: watching, following output, being interrupted, and the live view on a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from daggyr_program import PROGRAM, Daggyr, Process, Start
from scripted_server import COMPLETED, ERRORED, Piece, ScriptedServer
from support.waiting import DEADLINE

from daggyr.v1.task_pb2 import STDERR, STDOUT, AttemptOutcome

SPEC = json.dumps({"tasks": {name: {"details": {"command": ["true"]}} for name in "abc"}}).encode()
LOST = (grpc.StatusCode.UNAVAILABLE, "the server is going away")

Begin = Callable[..., Awaitable[Process]]


def at(server: ScriptedServer) -> dict[str, str]:
    return {"DAGGYR_SERVER": f"127.0.0.1:{server.port}"}


async def give(process: Process, data: bytes) -> None:
    assert process.process.stdin is not None
    process.process.stdin.write(data)
    process.process.stdin.close()


async def test_submit_watch_tells_what_fails_and_how_it_ended(start: Start, server: ScriptedServer) -> None:
    process = await start("submit", "--watch", "-", env=at(server))
    await give(process, SPEC)
    assert await process.line() == "1\n"
    assert await process.error_line() == "run 1 accepted: 3 tasks\n"
    await asyncio.wait_for(server.watching.wait(), DEADLINE)
    run = server.runs[1]
    await run.start("a")
    await run.start("b")
    await run.write("b", b"".join(b"line %d\n" % number for number in range(30)), stream=STDERR)
    await run.finish("b", ERRORED, exit_code=3, notes=("no more retries",))
    assert await process.error_line() == "task b ERRORED: FAILED, exit code 3 (no more retries)\n"
    await run.finish("a")
    await run.end(ERRORED)
    ended = await process.ended()
    assert ended.code == 1
    assert ended.out.splitlines()[0] == "Run 1  ERRORED"
    assert "3: 1 QUEUED, 1 COMPLETED, 1 ERRORED" in ended.out
    assert ended.said == [
        "1 task did not complete:",
        "  task b ERRORED: FAILED, exit code 3",
        *[f"    | line {number}" for number in range(20, 30)],
        "run 1 ERRORED in 1 min 0 s: 1 QUEUED, 1 COMPLETED, 1 ERRORED",
    ]


async def test_a_failure_before_the_watch_began_is_told_too(daggyr: Daggyr, server: ScriptedServer) -> None:
    run = server.new_run("a")
    await run.start("a")
    await run.finish("a", ERRORED, exit_code=9)
    await run.end(ERRORED)
    ended = await daggyr("watch", "last")
    assert ended.code == 1
    assert ended.err.splitlines()[:2] == ["run 1 ERRORED: 1 task", "task a ERRORED: FAILED, exit code 9"]


async def test_the_report_on_failures_is_bounded(daggyr: Daggyr, server: ScriptedServer) -> None:
    run = server.new_run(*(f"t{number}" for number in range(130)))
    for name in run.tasks:
        await run.start(name)
        await run.finish(name, ERRORED, exit_code=1)
    await run.end(ERRORED)
    ended = await daggyr("watch", "last")
    lines = ended.err.splitlines()
    assert lines[0] == "run 1 ERRORED: 130 tasks"
    assert lines[1:101] == [f"task t{number} ERRORED: FAILED, exit code 1" for number in range(100)]
    assert lines[101] == "130 tasks did not complete, for instance:"
    assert lines[102:112] == [f"  task t{number} ERRORED: FAILED, exit code 1" for number in range(10)]
    assert len(lines) == 113


async def test_watch_as_json_is_a_line_a_change(start: Start, server: ScriptedServer) -> None:
    run = server.new_run("a")
    process = await start("--output", "json", "watch", "last", env=at(server))
    first = json.loads(await process.line())
    assert (first["run_id"], first["state"], first["task_states"], first["tasks"]) == (1, "QUEUED", {"QUEUED": 1}, [])
    await run.start("a")
    assert json.loads(await process.line())["tasks"] == [
        {
            "task_id": "a",
            "task_number": 0,
            "state": "RUNNING",
            "attempt": 1,
            "outcome": None,
            "exit_code": None,
            "signal": None,
            "notes": [],
        }
    ]
    await run.finish("a", ERRORED, exit_code=4)
    change = json.loads(await process.line())["tasks"][0]
    assert (change["state"], change["outcome"], change["exit_code"]) == ("ERRORED", "FAILED", 4)
    await run.end(ERRORED)
    ended = await process.ended()
    assert (ended.code, ended.err) == (1, "")
    assert json.loads(ended.out)["state"] == "ERRORED"


async def test_a_watch_survives_a_lost_connection(start: Start, server: ScriptedServer) -> None:
    run = server.new_run("a")
    process = await start("watch", "1", env=at(server))
    assert await process.error_line() == "run 1 QUEUED: 1 task\n"
    await asyncio.wait_for(server.watching.wait(), DEADLINE)
    async with run.changed:
        server.broken["WatchRun.later"] = [LOST]
        run.changed.notify_all()
    assert await process.error_line() == "daggyr: no connection to the server; trying again\n"
    await run.complete()
    assert (await process.ended()).code == 0


async def test_interrupting_a_watch_leaves_the_run_alone(start: Start, server: ScriptedServer) -> None:
    server.new_run("a")
    process = await start("watch", "1", env=at(server))
    await process.error_line()
    await asyncio.wait_for(server.watching.wait(), DEADLINE)
    process.interrupt()
    ended = await process.ended()
    assert (ended.code, ended.out) == (130, "")
    assert "the run goes on" in ended.err
    assert "KillRun" not in [method for method, _ in server.calls]


async def test_logs_follow_shows_a_line_while_its_task_still_runs(start: Start, server: ScriptedServer) -> None:
    run = server.new_run("a")
    process = await start("logs", "1", "a", "-f", env=at(server))
    await asyncio.wait_for(server.watching.wait(), DEADLINE)
    await run.start("a")
    await run.write("a", b"first\n")
    assert await process.line() == "first\n"
    await run.write("a", b"second\n")
    assert await process.line() == "second\n"
    await run.finish("a", ERRORED, exit_code=1, again=True)
    await run.start("a")
    await run.write("a", b"of the retry\n")
    assert await process.line() == "of the retry\n"
    await run.finish("a", COMPLETED)
    ended = await process.ended()  # the run goes on
    assert (ended.code, ended.out, ended.err) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [("logs", "1", "-f"), ("logs", "1", "a", "-f"), ("logs", "1", "a", "-f", "--both"), ("--output=json", "watch", "1")],
)
async def test_a_reader_that_goes_away_ends_what_follows_something_quiet(
    start: Start, server: ScriptedServer, arguments: tuple[str, ...]
) -> None:
    run = server.new_run("a")
    await run.start("a")
    process = (await start(*arguments, env=at(server))).process
    await asyncio.wait_for(server.watching.wait(), DEADLINE)
    assert process.stdout is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]
    assert process.stderr is not None
    assert await asyncio.wait_for(process.stderr.read(), DEADLINE) == b""
    assert await process.wait() == 0


async def test_a_run_is_followed_to_its_exit_code_without_a_reader_too(start: Start, server: ScriptedServer) -> None:
    run = server.new_run("a")
    process = (await start("watch", "1", env=at(server))).process
    await asyncio.wait_for(server.watching.wait(), DEADLINE)
    assert process.stdout is not None
    process.stdout._transport.close()  # type: ignore[attr-defined]
    await run.start("a")
    await run.finish("a", ERRORED, exit_code=1)
    await run.end(ERRORED)
    assert await asyncio.wait_for(process.wait(), DEADLINE) == 1


async def test_logs_follow_of_a_run_follows_tasks_as_they_start(start: Start, server: ScriptedServer) -> None:
    run = server.new_run("a", "b", "c")
    await run.start("a")
    await run.write("a", b"before\n")
    process = await start("logs", "last", "-f", env=at(server))
    assert await process.line() == "a | before\n"
    await run.start("b")
    await run.write("b", b"begun")
    await run.write("a", b"after\n")
    assert await process.line() == "a | after\n"
    await run.write("b", b" and ended\n")
    assert await process.line() == "b | begun and ended\n"
    await run.finish("b")
    await run.write("a", b"no newline")
    await run.finish("a")
    await run.end()
    ended = await process.ended()
    assert (ended.code, ended.out, ended.err) == (0, "a | no newline\n", "")


async def test_logs_follow_shows_a_task_that_was_never_seen_running(start: Start, server: ScriptedServer) -> None:
    run = server.new_run("a", "b")
    process = await start("logs", "last", "-f", env=at(server))
    await asyncio.wait_for(server.watching.wait(), DEADLINE)
    async with run.changed:  # one change tells of both
        task = run.tasks["b"]
        attempt = task.task.attempts.add(attempt=1)
        attempt.result.outcome = AttemptOutcome.SUCCEEDED
        task.output[1, STDOUT] = [Piece(b"quick\n")]
        run.set(task, COMPLETED)
    assert await process.line() == "b | quick\n"
    await run.end()
    assert (await process.ended()).code == 0


async def test_interrupting_logs_is_130(start: Start, server: ScriptedServer) -> None:
    run = server.new_run("a")
    await run.start("a")
    await run.write("a", b"x\n")
    process = await start("logs", "1", "-f", env=at(server))
    await process.line()
    process.interrupt()
    ended = await process.ended()
    assert (ended.code, ended.err.strip()) == (130, "")


class Terminal:
    """`daggyr` whose standard output and error are a terminal of 100 columns."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        self._fd, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = subprocess.Popen(
            [PROGRAM, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=folder
        )
        os.close(slave)
        self.seen = ""
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._closed = False
        self._loop.add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: no process has the terminal open any more (pty(7))
            data = b""
        if not data:
            self._loop.remove_reader(self._fd)
            self._closed = True
        self.seen += data.decode("utf-8", "replace")
        self._news.set()

    async def until(self, pattern: str) -> None:
        """Return when `pattern` is in what was printed so far, without its colours."""
        async with asyncio.timeout(DEADLINE):
            while not re.search(pattern, re.sub(r"\x1b\[[0-9;]*m", "", self.seen)):
                assert not self._closed, f"{pattern} never appeared in {self.seen!r}"
                await self._news.wait()
                self._news.clear()

    async def ended(self) -> int:
        async with asyncio.timeout(DEADLINE):
            while not self._closed:
                await self._news.wait()
                self._news.clear()
        return await asyncio.to_thread(self.process.wait, DEADLINE)

    def hang_up(self) -> None:
        """Take the terminal away, as when its window is closed."""
        self._loop.remove_reader(self._fd)
        self._closed = True
        os.close(self._fd)
        self._fd = -1

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if not self._closed:
            self._loop.remove_reader(self._fd)
        if self._fd >= 0:
            os.close(self._fd)


async def watched_on_a_terminal(server: ScriptedServer, environment: dict[str, str], folder: Path, **variables: str) -> Terminal:
    """Watch a run of two tasks on a terminal from its start to its end."""
    run = server.new_run("a", "b")
    terminal = Terminal(["watch", "1"], {**environment, **at(server), "TERM": "xterm-256color", **variables}, folder)
    try:
        await terminal.until("0 of 2")
        await run.start("a")
        await terminal.until("running: a")
        await run.finish("a")
        await run.start("b")
        await terminal.until("(?s)1 of 2.*1 RUNNING, 1 COMPLETED.*running: b")
        await run.finish("b", ERRORED, exit_code=5)
        await terminal.until("task b ERRORED: FAILED, exit code 5")
        await run.end(ERRORED)
        assert await terminal.ended() == 1
    finally:
        terminal.close()
    return terminal


async def test_the_live_view(server: ScriptedServer, environment: dict[str, str], tmp_path: Path) -> None:
    terminal = await watched_on_a_terminal(server, environment, tmp_path)
    assert "━" in terminal.seen
    assert re.search(r"\x1b\[[0-9;]*3[0-9][0-9;]*m", terminal.seen), "no colour"
    assert "Traceback" not in terminal.seen
    assert terminal.seen.count("\x1b[?25l") == terminal.seen.count("\x1b[?25h") == 1, "the cursor comes back"
    assert "Run 1" in terminal.seen


async def test_no_color_leaves_colours_out(server: ScriptedServer, environment: dict[str, str], tmp_path: Path) -> None:
    terminal = await watched_on_a_terminal(server, environment, tmp_path, NO_COLOR="1")
    assert "━" in terminal.seen
    # Bold, dim and the like are left. Colours are 30 to 49 and 90 to 107.
    assert not re.search(r"\x1b\[(?:[0-9;]*;)?(?:3[0-9]|4[0-9]|9[0-7]|10[0-7])(?:;[0-9;]*)?m", terminal.seen)


async def test_interrupting_the_live_view_restores_the_terminal(
    server: ScriptedServer, environment: dict[str, str], tmp_path: Path
) -> None:
    server.new_run("a")
    terminal = Terminal(["watch", "1"], {**environment, **at(server), "TERM": "xterm"}, tmp_path)
    try:
        await terminal.until("0 of 1")
        terminal.process.send_signal(2)
        assert await terminal.ended() == 130
    finally:
        terminal.close()
    assert "\x1b[?25h" in terminal.seen
    assert "the run goes on" in terminal.seen
    assert "Traceback" not in terminal.seen


async def test_a_dumb_terminal_gets_lines(server: ScriptedServer, environment: dict[str, str], tmp_path: Path) -> None:
    await server.new_run("a").complete()
    terminal = Terminal(["watch", "1"], {**environment, **at(server), "TERM": "dumb"}, tmp_path)
    try:
        assert await terminal.ended() == 0
    finally:
        terminal.close()
    assert "\x1b" not in terminal.seen
    assert "run 1 COMPLETED in" in terminal.seen


@pytest.mark.parametrize("command", ["watch 1", "submit --watch spec.json"])
async def test_a_terminal_that_is_closed_changes_no_exit_code(
    server: ScriptedServer, environment: dict[str, str], tmp_path: Path, command: str
) -> None:
    """A command that shows a run's progress goes on without its terminal, and its exit code still tells how the run ended."""
    (tmp_path / "spec.json").write_text(json.dumps({"tasks": {"a": {"details": {"command": ["x"]}}}}))
    if command == "watch 1":
        server.new_run("a")
    terminal = Terminal(command.split(), {**environment, **at(server), "TERM": "xterm-256color"}, tmp_path)
    try:
        await terminal.until("0 of 1")
        terminal.hang_up()
        run = server.runs[1]
        await run.start("a")
        await run.finish("a", ERRORED, exit_code=5)
        await run.end(ERRORED)
        assert await asyncio.to_thread(terminal.process.wait, DEADLINE) == 1
    finally:
        terminal.close()
