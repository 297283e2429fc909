"""The three programs when standard descriptors are closed or full, the encoding has no umlauts, or names have odd bytes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daggyr_server import __version__
from daggyr_server.cli.main import main, program
from daggyr_server.core.states import State
from daggyr_server.trackers.sql.sqlite.tracker import SqliteTracker

BIN = Path(sys.executable).parent
SPEC = 'tasks: {a: {details: {command: [sh, -c, "echo out; echo err >&2"]}}}\n'
CLOSED = [" ".join(each) for count in (1, 2, 3) for each in itertools.combinations(("<&-", ">&-", "2>&-"), count)]
PROGRAMS = {"daggyr": "daggyr_server.cli", "daggyr-server": "daggyr_server", "daggyr-agent": "daggyr_agent"}


def shell(command: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    path = f"{BIN}:{environment['PATH']}"
    return subprocess.run(
        ["sh", "-c", command], env={**environment, "PATH": path}, cwd=folder, capture_output=True, check=False, timeout=300
    )


def nothing_runs(folder: Path) -> str:
    """The words of a run whose task is answered without a process, for tests of what the command itself prints."""
    (folder / "a.yaml").write_text(SPEC)
    (folder / "noop.toml").write_text("[pools.default]\nexecutor = 'noop'\n")
    return "run --config noop.toml a.yaml"


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_descriptors_change_no_result(closed: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SPEC)
    run = f"daggyr --output json run --tracker sqlite:{tmp_path}/state.db a.yaml {closed}"
    ended = shell(run, environment, tmp_path)
    assert ended.returncode == 0, ended
    assert b"Traceback" not in ended.stderr
    state = (tmp_path / "state.db").read_bytes()
    assert state.startswith(b"SQLite format 3\0"), "nothing was printed into a file that took a descriptor's number"
    assert asyncio.run(kept(tmp_path)) == [(1, State.COMPLETED)]


async def kept(folder: Path) -> list[tuple[int, State]]:
    """The runs in the tracker, with their states, as `--resume` reads them."""
    tracker = SqliteTracker(f"sqlite:{folder}/state.db")
    await tracker.open()
    try:
        return [(row.run_id, row.state) for row in await tracker.rows(before=None, limit=10)]
    finally:
        await tracker.close()


@pytest.mark.parametrize("program", ["daggyr-server --listen 127.0.0.1:0", "daggyr-agent --coordinator 127.0.0.1:1"])
@pytest.mark.parametrize(
    ("lifeline", "words"),
    [
        ("-1", b"--lifeline: '-1' is no number of a file descriptor"),
        ("9" * 11, b"--lifeline: '99999999999' is no number of a file descriptor"),
        ("9" * 5000, b"--lifeline: '9999999999999999999999999999999999999999' is no number of a file descriptor"),
        ("77", b"--lifeline: no file descriptor 77 was inherited"),
        ("pipe", b"--lifeline: 'pipe' is no number of a file descriptor"),
        ("5 5<a.yaml", b"--lifeline: file descriptor 5 has no other end that could close; give a pipe or a socket"),
        ("5 5</dev/null", b"--lifeline: file descriptor 5 has no other end that could close; give a pipe or a socket"),
    ],
)
def test_a_lifeline_that_can_tell_nothing_is_refused_in_words(
    program: str, lifeline: str, words: bytes, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(SPEC)
    ended = shell(f"{program} --lifeline {lifeline}", environment, tmp_path)
    assert (ended.returncode, words in ended.stderr, b"Traceback" in ended.stderr) == (2, True, False), ended


def test_a_ready_file_that_cannot_be_written_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    ended = shell("daggyr-server --listen 127.0.0.1:0 --log-level error --ready-file none/ready", environment, tmp_path)
    words = b"daggyr-server: the command line has a fault:\n  --ready-file: cannot write none/ready: No such file or directory\n"
    assert (ended.returncode, words in ended.stderr, b"Errno" in ended.stderr) == (2, True, False), ended


@pytest.mark.parametrize("closed", [">&-", CLOSED[-1]])
@pytest.mark.parametrize("command", ["daggyr-server --listen nowhere", "daggyr-agent", "daggyr nonsense"])
def test_faults_are_2_whatever_is_closed(command: str, closed: str, environment: dict[str, str], tmp_path: Path) -> None:
    ended = shell(f"{command} {closed}", environment, tmp_path)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (2, False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disks_end_in_no_traceback(environment: dict[str, str], tmp_path: Path) -> None:
    run = nothing_runs(tmp_path)
    for command in (f"daggyr {run}", f"daggyr --output json {run}", "daggyr --help", "daggyr-server --version"):
        ended = shell(f"{command} >/dev/full", environment, tmp_path)
        assert (command, ended.returncode, ended.stdout) == (command, 2, b"")
        assert b"No space left on device" in ended.stderr
        assert b"Traceback" not in ended.stderr
    for command, code in (("daggyr run a.yaml", 0), ("daggyr nonsense", 2), ("daggyr-agent", 2), ("daggyr-server --listen x", 2)):
        assert shell(f"{command} 2>/dev/full", environment, tmp_path).returncode == code


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_cannot_be_printed_are_escaped(encoding: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("tasks: {naïve-猫: {details: {command: ['false']}}}\ntags: {ort: 猫}\n")
    environment = {**environment, "PYTHONIOENCODING": encoding}
    ended = shell("daggyr run a.yaml", environment, tmp_path)
    assert ended.returncode == 1
    assert b"-\\u732b ERRORED" in ended.stderr
    assert b"ort=\\u732b" in ended.stdout
    ended = shell("daggyr --output json run a.yaml", environment, tmp_path)
    assert (ended.returncode, b'"ort": "\\u732b"' in ended.stdout) == (1, True)


@pytest.mark.parametrize("columns", ["0", "1", "10000", "many"])
def test_terminals_of_any_width(columns: str, environment: dict[str, str], tmp_path: Path) -> None:
    for command in ("daggyr --help", f"daggyr {nothing_runs(tmp_path)}", "daggyr-agent --help"):
        ended = shell(command, {**environment, "COLUMNS": columns}, tmp_path)
        assert (command, ended.returncode, b"Traceback" in ended.stderr) == (command, 0, False)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["task", "1", "\udcff"], ["why", "1", "\udcff"], ["logs", "1", "\udcff"], ["kill", "1", "\udcff"]),
        *(["retry", "1", "--task", "\udcff"], ["runs", "--tag", "a=\udcff"], ["runs", "--tag", "\udcff=a"]),
        *(["--server", "\udcff:1", "runs"], ["runs", "--server", "unix:/\udcff"], ["agent", "drain", "\udcff"]),
        *(["submit", "--pool", "\udcff", "a.yaml"], ["run", "--pool", "\udcff", "a.yaml"], ["mark", "1", "\udcff", "queued"]),
        *(["run", "--tracker", "sqlite:\udcff", "a.yaml"], ["show", "\udcff"], ["\udcff"], ["--output", "\udcff", "runs"]),
        *(["run", "\udcff.yaml"], ["validate", "\udcff"], ["run", "--config", "\udcff", "a.yaml"], ["delete", "\udcff"]),
        *(["--token-file", "\udcff", "runs"], ["prune", "--older-than", "\udcff"], ["completion", "\udcff"]),
    ],
)
def test_names_that_are_no_utf8_are_2(arguments: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SPEC)
    ended = subprocess.run(
        [BIN / "daggyr", *arguments], env=environment, cwd=tmp_path, capture_output=True, check=False, timeout=300
    )
    assert (ended.returncode, b"Traceback" in ended.stderr) == (2, False), ended.stderr


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        *(("daggyr-server", ["--listen", "\udcff:1"]), ("daggyr-server", ["--tracker", "sqlite:/\udcff"])),
        *(("daggyr-server", ["--config", "\udcff"]), ("daggyr-agent", ["--coordinator", "\udcff:1"])),
        *(("daggyr-agent", ["--coordinator", "unix:/\udcff"]), ("daggyr-agent", ["--config", "\udcff"])),
        *(("daggyr-agent", ["--coordinator", "h:1", "--name", "\udcff"]), ("daggyr-agent", ["\udcff"])),
        *(("daggyr-agent", ["--coordinator", "h:1", "--resource", "\udcff=1"]), ("daggyr-server", ["--log-level", "\udcff"])),
    ],
)
def test_daemons_refuse_names_that_are_no_utf8(
    program: str, arguments: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    ended = subprocess.run(
        [BIN / program, *arguments], env=environment, cwd=tmp_path, capture_output=True, check=False, timeout=300
    )
    assert (ended.returncode, b"Traceback" in ended.stderr) == (2, False), ended.stderr


def test_paths_may_be_any_bytes_and_are_shown_safely(environment: dict[str, str], tmp_path: Path) -> None:
    name = "b\udcff\x1b[31m\n.yaml"
    (tmp_path / name).write_text(SPEC)
    environment = {**environment, "HOME": f"{tmp_path}/\udcff", "XDG_STATE_HOME": ""}
    ended = subprocess.run([BIN / "daggyr", "run", name], env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    ended = subprocess.run([BIN / "daggyr", "validate", name], env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert ended.stdout == b"b\\xff\\x1b[31m\\x0a.yaml is valid: 1 task\n"
    (tmp_path / name).unlink()
    ended = subprocess.run([BIN / "daggyr", "validate", name], env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert ended.stderr == b"daggyr: cannot read b\\xff\\x1b[31m\\x0a.yaml: No such file or directory\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_version_has_one_form_and_modules_are_programs(program: str, environment: dict[str, str], tmp_path: Path) -> None:
    for command in ([str(BIN / program)], [sys.executable, "-m", PROGRAMS[program]]):
        ended = subprocess.run(
            [*command, "--version"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stdout) == (0, f"{program} {__version__}\n")


@pytest.mark.parametrize(
    ("program", "code"), [("daggyr", 130), ("daggyr-server", -signal.SIGINT), ("daggyr-agent", -signal.SIGINT)]
)
def test_an_interruption_while_modules_are_loaded(program: str, code: int, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    arguments = {
        "daggyr": ["--server", "unix:x", "runs"],
        "daggyr-agent": ["--coordinator", "unix:x", "--state-dir", str(tmp_path / "state")],
    }.get(program, [])
    ended = subprocess.run(
        [str(BIN / program), *arguments],
        env={**environment, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, b"", b"")


def test_an_agent_with_closed_descriptors_gives_no_file_away(environment: dict[str, str], tmp_path: Path) -> None:
    """An agent that is started with descriptor 1 closed prints nothing into its state folder's lock, which it opens first."""
    shell(f": | daggyr-agent --coordinator unix:{tmp_path}/none --state-dir {tmp_path}/agent --lifeline 3 3<&0 <&- >&- 2>&-",
          environment, tmp_path)  # fmt: skip
    assert (tmp_path / "agent/lock").read_text().strip().isdecimal()


def test_a_removed_working_folder(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SPEC)
    for command, code in (
        (f"daggyr validate {tmp_path}/a.yaml", 0),
        ("daggyr validate a.yaml", 2),
        ("daggyr --version", 0),
        ("daggyr --server unix:/nowhere/at.all runs", 3),
        ("daggyr-agent --coordinator unix:x --state-dir y", 2),
        (f"daggyr run {tmp_path}/a.yaml", 2),
        ("daggyr-server --tracker sqlite:x --listen unix:y", 2),
    ):
        gone = tmp_path / "gone"
        gone.mkdir()
        ended = shell(f"rmdir ../gone; {command}", environment, gone)
        assert (command, ended.returncode, b"Traceback" in ended.stderr) == (command, code, False), ended.stderr


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EMFILE, "its limits (ulimit -a) leave too little: Too many open files"),
        (errno.ENOSPC, "cannot write to standard output"),
    ],
)
def test_too_few_descriptors_are_not_taken_for_a_full_disk(
    number: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(program, "main", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, said in capsys.readouterr().err) == (2, True)
