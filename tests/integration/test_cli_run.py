"""`daggyr` with the real server: a run from its specification to its exit code, and everything gone afterwards.

However the command ends (by itself, Ctrl-C once or twice, killed), neither its server nor a task outlives it, and its folder
is removed wherever the command still could.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import preloaded
from support.deployment import BIN, follows, plain_environment, shell
from support.deployment import task as command
from support.waiting import DEADLINE, is_gone, until

STRANGERS = ("daggyr-run-mine", "daggyr-local-mine", "daggyr-backup")


class Home:
    """A user's folders and environment, and the programs started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.environment = {**plain_environment(), "XDG_STATE_HOME": str(folder / "state"), "TMPDIR": str(self.temporary)}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, program: str = "daggyr", **variables: str) -> subprocess.Popen[str]:
        process = preloaded.Popen(
            [BIN / program, *arguments],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self.started.append(process)
        return process

    def daggyr(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.ended(self.start(*arguments, **variables))

    def ended(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        out, err = process.communicate(timeout=DEADLINE)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def spec(self, **tasks: dict[str, object]) -> str:
        (self.folder / "spec.json").write_text(json.dumps({"tasks": tasks}))
        return "spec.json"

    def noop(self) -> str:
        """A configuration whose tasks are answered without a process."""
        (self.folder / "noop.toml").write_text("[pools.default]\nexecutor = 'noop'\n")
        return "noop.toml"

    def pid(self, name: str) -> int:
        """Return what a task wrote into the file `name`, once it has written it."""
        path = self.folder / name
        until(lambda: path.exists() and path.read_text().endswith("\n"), name)
        return int(path.read_text())

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            with contextlib.suppress(ValueError):  # what was read to its end is closed
                process.communicate()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


def test_the_original_run(home: Home) -> None:
    spec = {
        "tags": {"abc": "def"},
        "parameters": {"{{DATE}}": ["2022-01-01", "2022-01-02"]},
        "tasks": {"a": {"details": {"command": ["echo", "{{DATE}}"], "environment": {"TEST_ENV": "{{DATE}}"}}}},
    }
    (home.folder / "spec.json").write_text(json.dumps(spec))
    ended = home.daggyr("--output", "json", "run", "spec.json")
    assert ended.returncode == 0
    run = json.loads(ended.stdout)
    assert (run["run_id"], run["state"], run["tags"]) == (1, "COMPLETED", {"abc": "def"})
    assert run["task_states"] == {"COMPLETED": 4}
    names = [task["task_id"] for task in run["tasks"]]
    assert names == ["a", "a.{{DATE}}:2022-01-01", "a.{{DATE}}:2022-01-02", "a.tail"]
    assert {task["state"] for task in run["tasks"]} == {"COMPLETED"}
    assert ended.stderr.splitlines()[0] == "run 1 accepted: 2 tasks"
    assert list(home.temporary.iterdir()) == []


def test_tasks_start_where_the_command_did_and_get_its_environment(home: Home) -> None:
    """The environment lacks only the variables that are the program's own business."""
    spec = home.spec(a=shell("{ pwd; env; } > seen"))
    assert home.daggyr("run", spec, MINE="here").returncode == 0
    seen = (home.folder / "seen").read_text().splitlines()
    assert seen[0] == str(home.folder)
    assert "MINE=here" in seen
    assert "DAGGYR_TASK_ID=a" in seen
    assert not [line for line in seen if line.startswith("GRPC_VERBOSITY")]


def test_a_folder_full_of_namesakes_is_harmless(home: Home) -> None:
    """Modules in the user's folder do not stand in for the server's."""
    for name in ("daggyr_server.py", "grpc.py", "json.py"):
        (home.folder / name).write_text("raise SystemExit('wrong module')\n")
    ended = home.daggyr("run", "--config", home.noop(), home.spec(a=command("true")))
    assert ended.returncode == 0, ended.stderr


def test_yaml_tags_and_workers(home: Home) -> None:
    (home.folder / "spec.yaml").write_text(
        "tags: {env: prod, kept: no}\n"
        "tasks:\n"
        "  two: {details: {command: [test, -f, one], resources: {cores: 2}}, parents: [one]}\n"
        "  one: {details: {command: [touch, one]}}\n"
    )
    ended = home.daggyr("--output", "json", "run", "--workers", "2", "--tag", "env=test", "spec.yaml")
    assert (ended.returncode, json.loads(ended.stdout)["tags"]) == (0, {"env": "test", "kept": "no"})


def test_a_failure_is_1_and_shows_what_the_task_said(home: Home) -> None:
    spec = home.spec(
        bad=shell("echo working; echo 'no such table' >&2; exit 3", children=["after"]),
        after=command("true"),
        missing=command("no-such-program-anywhere"),
    )
    ended = home.daggyr("run", spec)
    assert ended.returncode == 1
    assert re.search(r"2 tasks did not complete:\n  task bad ERRORED: FAILED, exit code 3\n    \| no such table\n", ended.stderr)
    assert "task missing ERRORED: REJECTED" in ended.stderr
    assert "Run 1  ERRORED" in ended.stdout
    assert "3: 1 QUEUED, 2 ERRORED" in ended.stdout


def test_a_refused_specification_is_2_with_all_its_faults(home: Home) -> None:
    ended = home.daggyr("run", home.spec(a=command("true", chidlren=[]), b=command("true", parents=["nowhere"])))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("daggyr: spec.json is refused:\n")
    assert "chidlren" in ended.stderr
    assert "nowhere" in ended.stderr
    assert list(home.temporary.iterdir()) == []


def test_a_server_that_does_not_start_is_2_with_its_own_words(home: Home) -> None:
    (home.folder / "bad.toml").write_text("[server]\nlistne = '0.0.0.0:1'\n")
    ended = home.daggyr("run", "--config", "bad.toml", home.spec(a=command("true")))
    assert ended.returncode == 2
    assert ended.stderr.startswith("daggyr: the server did not start")
    assert "listne" in ended.stderr
    assert list(home.temporary.iterdir()) == []


def test_what_the_server_says_in_its_first_moments_is_passed_on(home: Home) -> None:
    """A target whose key is none is left out at once, and the run waits for it."""
    (home.folder / "key").write_text("no key")
    (home.folder / "ssh.toml").write_text(
        "[pools.default]\nexecutor = 'ssh'\nknown_hosts = '/dev/null'\nssh_config = '/dev/null'\n"
        "targets = [{host = '127.0.0.1', port = 1, private_key_file = 'key'}]\n"
    )
    process = home.start("run", "--config", "ssh.toml", home.spec(a=command("true")))
    assert process.stderr is not None
    seen = next(line for line in iter(process.stderr.readline, "") if "run 1 accepted" in line or "left out" in line)
    seen += next(line for line in iter(process.stderr.readline, "") if "run 1 accepted" in line or "left out" in line)
    assert "a private key cannot be used" in seen
    waits = next(line for line in iter(process.stderr.readline, "") if "1 task waits" in line)
    assert "host 127.0.0.1 is paused" in waits
    assert "a private key cannot be used" in waits
    process.send_signal(signal.SIGINT)
    assert home.ended(process).returncode == 130


def test_a_long_temporary_folder_leaves_room_for_a_socket(home: Home) -> None:
    long = home.folder / ("x" * 120)
    long.mkdir()
    ended = home.daggyr("run", "--config", home.noop(), home.spec(a=command("true")), TMPDIR=str(long))
    assert (ended.returncode, list(long.iterdir())) == (0, []), ended.stderr


def test_ctrl_c_kills_the_run_and_says_what_was(home: Home) -> None:
    process = home.start(
        "--output", "json", "run", home.spec(a=shell("echo $$ > pid; exec sleep 1000", children=["b"]), b=command("true"))
    )
    task = home.pid("pid")
    server = psutil.Process(process.pid).children()[0].pid
    follows(process)
    process.send_signal(signal.SIGINT)
    ended = home.ended(process)
    assert ended.returncode == 130
    run = json.loads(ended.stdout)
    assert (run["state"], run["task_states"]) == ("KILLED", {"QUEUED": 1, "KILLED": 1})
    assert "killing run 1" in ended.stderr
    assert is_gone(task)
    assert is_gone(server)
    assert list(home.temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ways_to_ask_for_the_end(home: Home, number: signal.Signals) -> None:
    process = home.start("run", home.spec(a=shell("echo $$ > pid; exec sleep 1000")))
    task = home.pid("pid")
    follows(process)
    process.send_signal(number)
    assert home.ended(process).returncode == 130
    assert is_gone(task)


def test_ctrl_c_twice_ends_everything_at_once(home: Home) -> None:
    """The task ignores SIGTERM and would have an hour."""
    (home.folder / "patient.toml").write_text("[server]\nkill_grace = 3600\n[pools.default]\nexecutor = 'local'\n")
    spec = home.spec(a=shell("trap '' TERM; echo $$ > pid; while :; do sleep 1000; done"))
    process = home.start("run", "--config", "patient.toml", spec)
    task = home.pid("pid")
    server = psutil.Process(process.pid).children()[0].pid
    assert process.stderr is not None
    follows(process)
    process.send_signal(signal.SIGINT)
    assert any("killing run 1" in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGINT)
    ended = home.ended(process)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert is_gone(server)
    until(lambda: is_gone(task), "the end of the task")


def test_when_the_command_is_killed_nothing_is_left_running(home: Home) -> None:
    process = home.start("run", home.spec(a=shell("echo $$ > pid; exec sleep 1000")))
    task = home.pid("pid")
    server = psutil.Process(process.pid).children()[0].pid
    process.kill()
    process.wait()
    until(lambda: is_gone(task) and is_gone(server), "the end of the server and the task")


def test_a_server_that_dies_is_3(home: Home) -> None:
    process = home.start("run", home.spec(a=shell("echo $$ > pid; exec sleep 1000")))
    task = home.pid("pid")
    follows(process)
    psutil.Process(process.pid).children()[0].kill()
    ended = home.ended(process)
    assert ended.returncode == 3
    assert "daggyr: the server ended unexpectedly (signal 9)" in ended.stderr
    until(lambda: is_gone(task), "the end of the task")
    # What the server itself had made, it could not remove any more.
    assert [path.name for path in home.temporary.iterdir() if not path.name.startswith("daggyr-local-")] == []


def test_a_live_run_on_a_terminal(home: Home) -> None:
    ours, theirs = pty.openpty()
    spec = home.spec(a=shell("while ! test -f go; do sleep 0.02; done"), b=shell("exit 4"))
    process = subprocess.Popen(
        [BIN / "daggyr", "run", spec],
        cwd=home.folder,
        env={**home.environment, "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = ""
    decoder = codecs.getincrementaldecoder("utf-8")()  # what is read may end within a character
    try:
        with contextlib.suppress(OSError):  # EIO: the terminal is closed at their end (pty(7))
            while select.select([ours], (), (), DEADLINE)[0] and (data := os.read(ours, 65536)):
                seen += decoder.decode(data)
                if "running: a" in seen and "1 of 2" in re.sub(r"\x1b\[[0-9;]*m", "", seen):
                    (home.folder / "go").touch()
        assert process.wait(DEADLINE) == 1
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "task b ERRORED: FAILED, exit code 4" in seen
    assert "━" in seen
    assert "2 of 2" in re.sub(r"\x1b\[[0-9;]*m", "", seen)
    assert "Traceback" not in seen


@pytest.fixture
def server(home: Home) -> str:
    """The address of a server of this user."""
    ready = home.folder / "ready"
    process = home.start("--listen", "127.0.0.1:0", "--ready-file", str(ready), "--log-level", "error", program="daggyr-server")
    until(lambda: (ready.exists() and ready.read_text().strip()) or process.poll() is not None, "the server")
    return ready.read_text().strip()


def test_a_line_is_seen_while_its_task_still_sleeps(home: Home, server: str) -> None:
    assert home.daggyr("--server", server, "submit", home.spec(a=shell("echo first; sleep 1000"))).stdout == "1\n"
    process = home.start("--server", server, "logs", "last", "a", "-f")
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"

    def running() -> bool:  # which the server may hear of after the line
        shown = json.loads(home.daggyr("--server", server, "--output", "json", "task", "1", "a").stdout)
        return (shown["state"], shown["attempts"][0]["outcome"]) == ("RUNNING", None)

    until(running, "the task to be RUNNING")
    assert home.daggyr("--server", server, "kill", "last").returncode == 0
    assert home.ended(process).returncode == 0
    assert home.daggyr("--server", server, "watch", "1").returncode == 1


def test_the_commands_on_a_server(home: Home, server: str) -> None:
    """Each command is run once, in the order in which a person would use them."""
    base = ("--server", server, "--output", "json")

    def answer(*arguments: str, code: int = 0) -> object:
        ended = home.daggyr(*base, *arguments)
        assert ended.returncode == code, ended.stderr
        return json.loads(ended.stdout)

    spec = home.spec(a=shell("echo out; echo err >&2; test -f fixed"), b=command("true", parents=["a"]))
    run = answer("submit", "--watch", "--tag", "k=v", spec, code=1)
    assert isinstance(run, dict)
    assert (run["state"], run["task_states"]) == ("ERRORED", {"QUEUED": 1, "ERRORED": 1})
    shown = answer("show", "last")
    assert isinstance(shown, dict)
    assert [change["state"] for change in shown.pop("history")] == ["RUNNING", "ERRORED"]
    assert shown == run
    runs = answer("runs", "--tag", "k=v", "--state", "errored", "--since", "1h")
    assert isinstance(runs, list)
    assert [one["run_id"] for one in runs] == [1]
    assert answer("runs", "--until", "1h") == []
    task = answer("task", "1", "a")
    assert isinstance(task, dict)
    assert (task["attempts"][0]["stdout"], task["attempts"][0]["stderr"]) == ("out\n", "err\n")
    why = answer("why", "1", "b")
    assert isinstance(why, dict)
    assert why["state"] == "QUEUED"
    assert why["reasons"]
    (home.folder / "fixed").touch()
    assert isinstance(answer("retry", "last"), dict)
    assert home.daggyr(*base, "watch", "1").returncode == 0
    tasks = answer("tasks", "1")
    assert isinstance(tasks, list)
    assert [(one["task_id"], one["state"], one["attempt_count"]) for one in tasks] == [
        ("a", "COMPLETED", 2),
        ("b", "COMPLETED", 1),
    ]
    pools = answer("pools")
    assert isinstance(pools, list)
    assert [pool["name"] for pool in pools if pool["is_default"]] == ["default"]
    assert isinstance(answer("agents"), list)
    assert home.daggyr("--server", server, "logs", "1").stdout == "a | out\n"
    ended = home.daggyr("--server", server, "agent", "drain", "nobody")
    assert ended.returncode == 2
    for arguments in (["show", "9"], ["task", "1", "x"], ["logs", "1", "x"], ["kill", "1"], ["why", "1", "x"]):
        ended = home.daggyr("--server", server, *arguments)
        assert (ended.returncode, ended.stdout) == (2, ""), arguments
        assert ended.stderr.startswith("daggyr: ")
        assert len(ended.stderr.splitlines()) == 1


def test_what_killed_commands_leave_goes_away_and_nothing_else(home: Home) -> None:
    """Their folders stayed in TMPDIR for ever, and whatever ran below a server that was killed with them went on."""
    for name in STRANGERS:
        (home.temporary / name / "agent").mkdir(parents=True)
    (home.temporary / "daggyr-run-file").write_text("a file of somebody's")
    spec = home.spec(a=command("sh", "-c", "echo $$ > pid; exec sleep 600"))
    kept = {*STRANGERS, "daggyr-run-file"}
    living = home.start("run", spec)
    until(lambda: (home.folder / "pid").exists() and (home.folder / "pid").read_text().strip(), "the task's pid")
    (home.folder / "pid").unlink()
    folders = {path.name for path in home.temporary.iterdir()} - kept
    assert len(folders) == 2

    killed = home.start("run", spec)
    until(lambda: (home.folder / "pid").exists() and (home.folder / "pid").read_text().strip(), "the task's pid")
    killed.kill()
    until(
        lambda: {path.name for path in home.temporary.iterdir()} == kept | folders, "the end of the folders"
    )  # its server saw to that

    (home.folder / "pid").unlink()
    killed = home.start("run", spec)
    until(lambda: (home.folder / "pid").exists() and (home.folder / "pid").read_text().strip(), "the task's pid")
    task = int((home.folder / "pid").read_text())
    programs = psutil.Process(killed.pid).children(recursive=True)
    for program in [killed.pid, *(program.pid for program in programs if program.pid != task)]:
        os.kill(program, signal.SIGSTOP)
    for program in [*(program.pid for program in programs if program.pid != task), killed.pid]:
        os.kill(program, signal.SIGKILL)
    killed.wait()
    left = [path for path in home.temporary.iterdir() if path.name not in kept | folders]
    assert left

    going = home.start("run", spec)
    until(lambda: is_gone(task) and not any(path.exists() for path in left), "the end of the task, then of what held it")
    follows(going)
    going.terminate()
    assert home.ended(going).returncode == 130
    until(lambda: {path.name for path in home.temporary.iterdir()} == kept | folders, "the end of the folders")
    living.send_signal(signal.SIGINT)
    assert home.ended(living).returncode == 130
    assert {path.name for path in home.temporary.iterdir()} == kept
