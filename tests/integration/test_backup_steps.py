"""deploy/README.md's steps for backups, followed word by word for both kinds of trackers, in a folder in the place of /."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from deploy_kits import README
from support.deployment import BIN, Deployment, shell
from support.ended import Ended
from support.postgres_server import PostgresServer

_BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README.split("\n## Backup\n")[1].split("\n## ")[0], re.MULTILINE | re.DOTALL)
COPY, BRING_BACK, LOAD, GO_ON = _BLOCKS


class Host:
    """A server with the configuration of deploy/systemd, and a tracker that may be another."""

    def __init__(self, deployment: Deployment, tracker: str) -> None:
        self.deployment = deployment
        self.root = deployment.folder / "host"
        for folder in ("etc/daggyr", "var/lib/daggyr", "var/backups"):
            (self.root / folder).mkdir(parents=True)
        self.tracker = tracker or f"sqlite:{self.root}/var/lib/daggyr/state.db"
        self.config = f'[server]\ntracker = "{self.tracker}"\n[pools.default]\nexecutor = "local"\nworkers = 2\n'
        (self.root / "etc/daggyr/server.toml").write_text(self.config)

    def start(self) -> None:
        self.deployment.start_server("--config", str(self.root / "etc/daggyr/server.toml"))

    def stop(self) -> None:
        self.deployment.programs[-1].end()

    def follow(self, block: str) -> Ended:
        words = re.sub(r"(?<![\w/])/(etc|var)/", rf"{self.root}/\1/", block)
        assert words != block or "$DATABASE" in block
        ended = subprocess.run(
            ["sh", "-euc", words],
            cwd=self.deployment.work,
            env={**self.deployment.environment, "DATABASE": self.tracker, "PATH": f"{BIN}:{self.deployment.environment['PATH']}"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return Ended(ended.returncode, ended.stdout, ended.stderr)


def test_sqlite(deployment: Deployment) -> None:
    host = Host(deployment, "")
    host.start()
    deployment.complete({"a": shell("echo before")})
    assert "copied" in host.follow(COPY).out
    deployment.complete({"a": shell("echo after")})
    host.stop()
    assert "another life" in host.follow(BRING_BACK).out
    host.start()
    assert [run["run_id"] for run in deployment.runs()] == [1]
    assert deployment.complete({"a": shell("true")})["run_id"] > 1_000_000
    host.stop()
    # An older copy is put in its place, without another life.
    state = host.root / "var/lib/daggyr/state.db"
    older = state.read_bytes()
    host.start()
    deployment.goes_on()
    host.stop()
    state.write_bytes(older)
    refused = subprocess.run(
        [BIN / "daggyr-server", "--config", host.root / "etc/daggyr/server.toml"],
        env=deployment.environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert refused.returncode == 2 and "is behind what this host has seen of it" in refused.stderr
    assert f"{state}.before-1" in host.follow(GO_ON).out
    assert Path(f"{state}.before-1").read_bytes() == older
    host.start()
    assert [run["run_id"] for run in deployment.runs()] == [1_000_001, 1]
    assert deployment.complete({"a": shell("true")})["run_id"] == 2_000_001


def test_postgres(deployment: Deployment, postgres: PostgresServer) -> None:
    if subprocess.run(["sh", "-c", "command -v pg_dump psql"], capture_output=True, check=False).returncode:
        pytest.skip("Postgres' client programs are not here")
    postgres.execute("CREATE DATABASE steps")
    host = Host(deployment, postgres.url("steps"))
    host.start()
    deployment.complete({"a": shell("echo before")})
    assert "by pg_dump" in host.follow(COPY).out
    deployment.complete({"a": shell("echo after")})
    host.stop()
    assert "another life" in host.follow(LOAD).out
    host.start()
    assert [run["run_id"] for run in deployment.runs()] == [1]
    assert deployment.complete({"a": shell("true")})["run_id"] > 1_000_000
