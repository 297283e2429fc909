"""A tracker that is brought back from a copy: as it is, it is refused; restored, nothing of its former life counts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from farm import LEDGER, Farm
from faults_tracker import new_tracker
from support import preloaded
from support.deployment import BIN, Deployment, is_gone, shell, until
from support.ended import Ended
from support.postgres_server import PostgresServer

from daggyr_server.trackers.sql.sqlite.file import APPLICATION_ID
from daggyr_server.trackers.sql.statements import migrations

LEFT_OUT = 1_000_000  # run ids, at least, where another life begins


def begins_at(restored: Ended) -> int:
    """The first run id of another life, as `restore` tells it."""
    found = re.search(r"run ids go on at ([\d,]+)", restored.out)
    assert found, restored.out
    return int(found[1].replace(",", ""))


class Copies:
    """One way to copy a tracker that is in use, to bring the copy back as it was, and to make it another life."""

    def __init__(self, deployment: Deployment, tracker: str, postgres: PostgresServer | None) -> None:
        self.deployment = deployment
        self.tracker = tracker
        self._postgres = postgres
        self._copy = deployment.folder / "copy"

    def make(self) -> Ended:
        return server_command(self.deployment, "backup", str(self._copy), "--tracker", self.tracker)

    def bring_back(self) -> None:
        """Put the copy in the tracker's place, as someone does who knows nothing of lives."""
        if self._postgres is None:
            path = Path(self.tracker.removeprefix("sqlite:"))
            for each in path.parent.glob(f"{path.name}*"):
                each.unlink()
            shutil.copy(self._copy, path)
            # Someone who copied the file with another program has a file that says nothing of being a copy.
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("UPDATE tracker SET standing = 0")
                connection.commit()
            return
        name = urlsplit(self.tracker).path.removeprefix("/")
        self._postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")
        self._postgres.execute(f"CREATE DATABASE {name}")
        loaded = subprocess.run(
            ["pg_restore", "--no-owner", "--dbname", self.tracker, self._copy], capture_output=True, check=False
        )
        assert loaded.returncode == 0, loaded.stderr

    def restore(self) -> Ended:
        """Make what is in the tracker's place another life."""
        return server_command(self.deployment, "restore", "--tracker", self.tracker)


def server_command(deployment: Deployment, *arguments: str) -> Ended:
    ended = preloaded.run(
        [BIN / "daggyr-server", *arguments],
        cwd=deployment.work,
        env=deployment.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def copies(deployment: Deployment, tracker: str, request: pytest.FixtureRequest) -> Copies:
    if not tracker.startswith("postgresql"):
        return Copies(deployment, tracker, None)
    if shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not here")
    return Copies(deployment, tracker, request.getfixturevalue("postgres"))


def forget_starts(deployment: Deployment) -> None:
    """Have this host forget what it has seen, as another host has never seen it."""
    shutil.rmtree(deployment.state / "daggyr" / "trackers")


def a_run(deployment: Deployment, said: str, *held: str) -> int:
    for name in held:
        deployment.gate(name)
    holding = {name: f"echo $$ > {name}.pid; exec 9< {name}.gate; read line <&9; " for name in held}
    return deployment.submit({name: shell(f"{holding.get(name, '')}{LEDGER}; echo {said}") for name in ("a", "b", *held)})


def pid_of(deployment: Deployment, name: str) -> int:
    return int(until(lambda: deployment.read(f"{name}.pid").strip(), f"{name} to run"))


@pytest.mark.parametrize("starts", [0, 3])
@pytest.mark.parametrize("agent", ["goes on", "is stopped"])
def test_agents_and_a_copy_that_is_restored(deployment: Deployment, copies: Copies, starts: int, agent: str) -> None:
    """The former life went on after the copy, with runs that the copy does not know. None of its results is the new one's."""
    farm = Farm(deployment, copies.tracker)
    farm.start()
    (one,) = farm.agents("one", cores=4)
    held = a_run(deployment, "before the copy", "held")
    before_copy = pid_of(deployment, "held")
    deployment.running(held, "held")
    made = copies.make()
    assert made.code == 0, made.err
    for _ in range(starts):
        farm.kill_and_start()
    later = a_run(deployment, "of the former life", "later")
    assert later == held + 1
    after_copy = pid_of(deployment, "later")
    until(lambda: deployment.states(later)["a"] == deployment.states(later)["b"] == "COMPLETED", "a and b")
    farm.kill()
    if agent == "is stopped":
        one.process.send_signal(signal.SIGSTOP)
    copies.bring_back()
    forget_starts(deployment)
    restored = copies.restore()
    assert restored.code == 0, restored.err
    assert "1 run had not ended" in restored.out, restored.out
    assert begins_at(restored) > LEFT_OUT
    farm.start()
    again = a_run(deployment, "of the new life")
    assert again == begins_at(restored)
    one.process.send_signal(signal.SIGCONT)
    assert deployment.watch(again)["task_states"] == {"COMPLETED": 2}
    for name in ("a", "b"):
        (attempt,) = deployment.task(again, name)["attempts"]
        assert attempt["stdout"] == "of the new life\n"
    until(lambda: is_gone(before_copy) and is_gone(after_copy), "the end of what ran for the former life")
    assert [run["run_id"] for run in deployment.runs()] == [again, held]
    # What was in flight when the copy was made is LOST, and runs again.
    until(lambda: int(deployment.read("held.pid")) != before_copy, "held, again")
    (deployment.work / "held.gate").open("w").close()
    assert deployment.watch(held)["task_states"] == {"COMPLETED": 3}
    first, second = deployment.task(held, "held")["attempts"]
    assert (first["outcome"], second["outcome"], second["stdout"]) == ("LOST", "SUCCEEDED", "before the copy\n")
    assert "another life" in " ".join(first["executor"])


def test_a_copy_that_is_brought_back_as_it_is_is_refused_by_agents(deployment: Deployment, copies: Copies) -> None:
    """People are told where they look, and how to go on; once they have, the same agent is let in."""
    farm = Farm(deployment, copies.tracker)
    farm.start()
    farm.agents("one")
    assert copies.make().code == 0
    for _ in range(2):
        farm.kill_and_start()
        until(lambda: [agent["state"] for agent in deployment.agents()] == ["CONNECTED"], "the agent to be back")
    farm.kill()
    copies.bring_back()
    refused = server_command(deployment, "--tracker", copies.tracker, "--listen", "127.0.0.1:0")
    assert refused.code == 2 and "this host has seen start 3 of it" in refused.err and "daggyr-server restore" in refused.err
    forget_starts(deployment)
    farm.start()
    run_id = deployment.submit({"a": shell(LEDGER)})

    def state() -> str:
        return next((agent["state"] for agent in deployment.agents() if agent["name"] == "one"), "")

    until(lambda: state() == "REFUSED", "the agent to be refused")
    words = "has seen start"
    (agent,) = deployment.agents()
    assert words in agent["refused"] and "daggyr-server restore --tracker" in agent["refused"]
    assert words in deployment.daggyr("agents").out
    assert words in deployment.daggyr("pools").out and words in str(deployment.pools())
    assert words in deployment.why(run_id, "a")
    assert words in " ".join(deployment.run(run_id)["notes"])
    assert words in farm.coordinator.said()
    assert farm.coordinator.said().count("is refused") == 1
    assert deployment.states(run_id) == {"a": "QUEUED"}
    assert server_command(deployment, "restore", "--tracker", copies.tracker).code == 2, "a server holds it"
    farm.kill()
    assert copies.restore().code == 0
    farm.start()
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 1}
    assert [agent["state"] for agent in deployment.agents()] == ["CONNECTED"]


def test_a_local_pool_and_a_copy_that_is_restored(deployment: Deployment, copies: Copies) -> None:
    farm = Farm(deployment, copies.tracker, pools='[pools.farm]\nexecutor = "local"\nworkers = 4')
    farm.start()
    held = a_run(deployment, "of either", "held")
    before = pid_of(deployment, "held")
    assert copies.make().code == 0
    later = a_run(deployment, "of the former life", "later")
    until(lambda: deployment.states(later)["a"] == "COMPLETED", "a")
    farm.kill()
    copies.bring_back()
    forget_starts(deployment)
    restored = copies.restore()
    assert restored.code == 0
    farm.start()
    until(lambda: is_gone(before), "the end of what ran for the former life")
    new = a_run(deployment, "of the new life")
    assert new == begins_at(restored)
    assert deployment.watch(new)["task_states"] == {"COMPLETED": 2}
    assert deployment.task(new, "a")["attempts"][0]["stdout"] == "of the new life\n"
    until(lambda: int(deployment.read("held.pid")) != before, "held, again")
    (deployment.work / "held.gate").open("w").close()
    assert deployment.watch(held)["task_states"] == {"COMPLETED": 3}


# -- the commands -----------------------------------------------------------------------------------------------------


def test_a_copy_of_a_live_sqlite_tracker(deployment: Deployment, tmp_path: Path) -> None:
    farm = Farm(deployment, new_sqlite(tmp_path / "here"))
    farm.start()
    farm.agents("one")
    assert deployment.complete({"a": shell(LEDGER)})["run_id"] == 1
    (tmp_path / "copies").mkdir()
    copy = tmp_path / "copies" / "daggyr.db"
    config = str(deployment.folder / "server.toml")
    made = server_command(deployment, "backup", str(copy), "--config", config)
    assert made.code == 0, made.err
    assert "1 run, of which 0 had not ended" in made.out and f"{copy.stat().st_size:,} bytes" in made.out, made.out
    assert copy.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in copy.parent.iterdir()] == ["daggyr.db"]
    again = server_command(deployment, "--config", config, "backup", str(copy))
    assert (again.code, again.out) == (2, "") and "exists, and a copy overwrites nothing" in again.err
    started = server_command(deployment, "--tracker", f"sqlite:{copy}", "--listen", "127.0.0.1:0")
    assert started.code == 2 and "is a copy that `daggyr-server backup` made" in started.err
    in_place = server_command(deployment, "restore", str(copy), "--config", config)
    assert in_place.code == 2 and "exists: move it away first" in in_place.err
    of_live = server_command(deployment, "restore", str(tmp_path / "here" / "state.db"), "--tracker", f"sqlite:{tmp_path}/x.db")
    assert of_live.code == 2 and "a server uses" in of_live.err and not (tmp_path / "x.db").exists()
    deployment.goes_on()
    farm.coordinator.end()
    stopped = server_command(deployment, "backup", str(tmp_path / "copies" / "stopped.db"), "--config", config)
    assert stopped.code == 0 and "2 runs" in stopped.out
    restored = server_command(deployment, "restore", str(copy), "--tracker", f"sqlite:{tmp_path}/there.db")
    assert restored.code == 0, restored.err
    assert copy.stat().st_mode & 0o777 == 0o600 and (tmp_path / "there.db").stat().st_mode & 0o777 == 0o600
    farm.tracker = f"sqlite:{tmp_path}/there.db"
    farm.start()
    assert [run["run_id"] for run in deployment.runs()] == [1]
    assert deployment.submit({"a": shell("true")}) == begins_at(restored)


def new_sqlite(folder: Path) -> str:
    folder.mkdir()
    return f"sqlite:{folder}/state.db"


def changed(content: bytes, at: int) -> bytes:
    """With another byte there, whatever it was."""
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize("loses", [lambda wal: wal.unlink(), lambda wal: wal.write_bytes(changed(wal.read_bytes(), 40))])
def test_a_lost_log_and_the_way_to_go_on(deployment: Deployment, tmp_path: Path, loses: Callable[[Path], object]) -> None:
    tracker = new_sqlite(tmp_path / "here")
    farm = Farm(deployment, tracker)
    farm.start()
    farm.agents("one")
    deployment.complete({"a": shell(LEDGER)})
    farm.kill()
    loses(tmp_path / "here" / "state.db-wal")
    refused = server_command(deployment, "--tracker", tracker, "--listen", "127.0.0.1:0")
    assert refused.code == 2
    advice = refused.err.strip().rpartition("as another life of the tracker: ")[2]
    assert advice == f"daggyr-server restore --tracker {tracker}"
    restored = server_command(deployment, *advice.split()[1:])
    assert restored.code == 0 and f"is {tmp_path}/here/state.db.before-1 now" in restored.out, restored
    farm.start()
    deployment.goes_on()
    assert deployment.runs()[0]["run_id"] == begins_at(restored)


def test_a_copy_of_an_older_versions_tracker_says_that_it_is_one(deployment: Deployment, tmp_path: Path) -> None:
    """The tables of that version have no word for it."""
    old, copy = tmp_path / "old.db", tmp_path / "copy.db"
    with contextlib.closing(sqlite3.connect(old)) as connection:
        connection.executescript(f"{migrations('sqlite')[0]}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1")
        connection.execute("INSERT INTO tracker VALUES (1, '1234', 3, 7, 'host', 42, 0)")
        connection.commit()
    old.chmod(0o600)
    before = old.read_bytes()
    made = server_command(deployment, "backup", str(copy), "--tracker", f"sqlite:{old}")
    assert (made.code, old.read_bytes() == before) == (0, True), made.err
    served = server_command(deployment, "--tracker", f"sqlite:{copy}", "--listen", "127.0.0.1:0")
    assert (served.code, "is a copy that `daggyr-server backup` made" in served.err) == (2, True), served.err
    restored = server_command(deployment, "restore", str(copy), "--tracker", f"sqlite:{tmp_path}/new.db")
    assert restored.code == 0 and begins_at(restored) > LEFT_OUT + 7, restored.err
    assert "every run in it had ended" in restored.out and "0 runs" not in restored.out


def test_what_cannot_be_copied_or_restored(deployment: Deployment, tmp_path: Path) -> None:
    for arguments, words in (
        (("backup", "x.db"), "the tracker 'memory' keeps nothing on disk"),
        (("backup", "x.db", "--tracker", "sqlite:none.db"), "there is no tracker"),
        (("restore", "none.db", "--tracker", "sqlite:state.db"), "there is no copy"),
        (("restore", "--tracker", "sqlite:state.db"), "there is no tracker"),
        (("backup",), "Missing argument 'DEST'"),
        (("restore", "spec.yaml", "--tracker", "sqlite:state.db"), "is no sqlite database"),
    ):
        (deployment.work / "spec.yaml").write_text("tasks: {}\n")
        ended = server_command(deployment, *arguments)
        assert ended.code == 2 and words in ended.err, (arguments, ended.err)
        assert {each.name for each in deployment.work.iterdir()} <= {"spec.yaml", "state.db-lock"}, arguments


def test_a_database_without_a_tracker_is_not_restored(
    deployment: Deployment, postgres: PostgresServer, request: pytest.FixtureRequest
) -> None:
    tracker = new_tracker("postgresql", request)
    ended = server_command(deployment, "restore", "--tracker", tracker)
    assert ended.code == 2 and "holds no tracker: load a copy first: pg_restore" in ended.err
    with_copy = server_command(deployment, "restore", "copy", "--tracker", tracker)
    assert with_copy.code == 2 and "pg_restore --dbname DATABASE" in with_copy.err


def test_the_way_is_told_where_pg_dump_is_not(deployment: Deployment, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tracker = new_tracker("postgresql", request)
    deployment.environment["PATH"] = str(tmp_path)
    ended = server_command(deployment, "backup", "copy", "--tracker", tracker)
    assert ended.code == 2 and "pg_dump --format=custom --schema=daggyr" in ended.err
    assert os.path.lexists(deployment.work / "copy") is False
