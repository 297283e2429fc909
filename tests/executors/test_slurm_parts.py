"""The parts of the Slurm executor that need no cluster: settings, what resources and ends mean, what the REST API may say."""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.readme_examples import ROOT

from daggyr.attempts.outcome import judge
from daggyr.v1.task_pb2 import AttemptOutcome
from daggyr_server.executors.slurm.client import (
    Job,
    Needs,
    SlurmError,
    SlurmGone,
    SlurmLimited,
    SlurmRefused,
    SlurmUnavailable,
    indexes,
    needs_of,
)
from daggyr_server.executors.slurm.jobs.outcomes import GONE, seen_of
from daggyr_server.executors.slurm.jobs.submission_folder import JobReport
from daggyr_server.executors.slurm.rest import SlurmRest
from daggyr_server.executors.slurm.settings import SlurmSettings, minutes
from daggyr_server.executors.slurm.words import Verdict, error_of, known_texts

HERE = Path("/shared")


def test_the_readme_lists_all_settings() -> None:
    readme = (ROOT / "daggyr_server/executors/README.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"^```toml\n(.*?)^```$", readme, re.M | re.S) if 'executor = "slurm"' in block]
    listed = tomllib.loads(block)["pools"]["hpc"]
    assert listed.keys() - {"executor"} == {field.encode_name for field in msgspec.structs.fields(SlurmSettings)}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"directory": Path("/with/100%")}, "`directory`"),
        ({"time_limit": "soon"}, "`time_limit`"),
        ({"options": ["-p main"]}, "--name=value"),
        ({"options": ["--array=0-9"]}, "--array"),
        ({"user": "me"}, "`base_url`"),
        ({"base_url": "slurm:6820"}, "http://HOST:PORT"),
        ({"base_url": "http://slurm:6820"}, "`token_file`"),
        ({"base_url": "unix:/run/slurmrestd.socket", "options": ["--exclusive"]}, "`job`"),
    ],
)
def test_settings_that_contradict_each_other_are_explained(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        SlurmSettings(**{"directory": HERE, **given})


@pytest.mark.parametrize(
    ("text", "known"),
    [("90", 90), ("1:30", 2), ("1:30:00", 90), ("2-12", 3600), ("1-0:30", 1470), ("0-0:0:1", 1), ("x", None), ("1-", None)],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, known: int | None) -> None:
    assert minutes(text) == known


def test_resources_mean_something_in_slurm() -> None:
    settings = SlurmSettings(directory=HERE, time_limit="10")
    resources = {"cores": 4, "memory_mb": 500, "gpus": 3, "gres/gpu:a100": 2, "gres/widget": 0, "license/matlab": 1}
    assert needs_of(resources, 0, settings) == Needs(4, 500, (("gpu:a100", 2),), 3, (("matlab", 1),), 10)
    assert needs_of({"cores": 0}, 100, settings).minutes == 3, "the timeout, and a minute"
    assert needs_of({}, 6_000, settings).minutes == 10, "no more than the pool's"
    assert needs_of({}, 0, SlurmSettings(directory=HERE)) == Needs()
    with pytest.raises(ValueError, match=r"3 of gres/a b, 2 of tpus"):
        needs_of({"tpus": 2, "gres/a b": 3}, 0, settings)


def test_indexes_of_an_array() -> None:
    assert indexes("0-3,7") == [0, 1, 2, 3, 7]
    assert indexes("1-5:2%3") == [1, 3, 5]
    assert indexes("0,2,4,...") == [0, 2, 4]
    assert indexes("") == []


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Invalid partition name specified", SlurmRefused),
        ("Requested node configuration is not available", SlurmRefused),
        ("Socket timed out on send/recv operation", SlurmUnavailable),
        ("Required partition not available (inactive or drain)", SlurmUnavailable),
        ("Partition in DOWN state", SlurmUnavailable),
        ("Requested nodes are busy", SlurmUnavailable),
        ("Slurm backup controller in standby mode", SlurmUnavailable),
        ("Job can not start due to maintenance reservation.", SlurmUnavailable),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", SlurmLimited),
        ("Invalid job array specification", SlurmLimited),
        ("Invalid job id specified", SlurmGone),
        ("something new", SlurmUnavailable),
    ],
)
def test_errors_have_kinds(words: str, kind: type[SlurmError]) -> None:
    error = error_of(f"sbatch: error: Batch job submission failed: {words}")
    assert type(error) is kind
    assert words in str(error)


def test_no_text_of_the_installed_slurm_is_unknown() -> None:
    """Slurm's library is asked for the text of each number that there may be."""
    libraries = [*Path("/usr/lib").glob("*/slurm*/libslurmfull.so")]
    if not libraries:
        pytest.skip("Slurm is not installed")
    library = ctypes.CDLL(str(libraries[0]))
    library.slurm_strerror.restype = ctypes.c_char_p
    # Below 1000 are the system's own errors. Slurm says of a number without a text what the system says of it.
    texts = {number: library.slurm_strerror(number).decode() for number in (-1, *range(1_000, 20_000))}
    own = {text for number, text in texts.items() if text != os.strerror(number)}
    assert len(own) > 200
    assert own - known_texts().keys() == set()


def test_the_texts_of_other_versions_are_known_too() -> None:
    assert known_texts()["MaxJobCount limit reached"] is Verdict.LIMIT, "of 26.05"
    assert known_texts()["Authentication credential expired"] is Verdict.NOW, "of 24.11"
    assert known_texts()["ConfigLess mode is disabled"] is Verdict.NOW, "of 20.11"
    assert set(known_texts().values()) == set(Verdict)


OK = JobReport(status=0)
THREE = JobReport(status=3)
KILLED = JobReport(status=137)
OK_ALL_THE_SAME = JobReport(status=0, stopped=True)
TERMINATED = JobReport(status=143, stopped=True)


@pytest.mark.parametrize(
    ("reported", "state", "asked", "outcome"),
    [
        (OK, None, False, "SUCCEEDED"),
        (OK, "CANCELLED", True, "SUCCEEDED"),
        (OK_ALL_THE_SAME, "CANCELLED", True, "SUCCEEDED"),
        (OK_ALL_THE_SAME, "CANCELLED", False, "KILLED"),
        (OK_ALL_THE_SAME, "TIMEOUT", False, "TIMED_OUT"),
        (OK_ALL_THE_SAME, "OUT_OF_MEMORY", False, "OOM_KILLED"),
        (OK_ALL_THE_SAME, "PREEMPTED", False, "LOST"),
        (OK_ALL_THE_SAME, "NODE_FAIL", False, "LOST"),
        (OK_ALL_THE_SAME, GONE, False, "LOST"),
        (OK, "OUT_OF_MEMORY", False, "SUCCEEDED"),
        (THREE, "FAILED", False, "FAILED"),
        (THREE, GONE, False, "FAILED"),
        (THREE, None, True, "KILLED"),
        (KILLED, "OUT_OF_MEMORY", False, "OOM_KILLED"),
        (KILLED, "FAILED", False, "FAILED"),
        (None, "OUT_OF_MEMORY", False, "OOM_KILLED"),
        (TERMINATED, "TIMEOUT", False, "TIMED_OUT"),
        (None, "TIMEOUT", False, "TIMED_OUT"),
        (None, "DEADLINE", False, "TIMED_OUT"),
        (TERMINATED, "PREEMPTED", False, "LOST"),
        (None, "NODE_FAIL", False, "LOST"),
        (None, "BOOT_FAIL", False, "LOST"),
        (TERMINATED, "CANCELLED", False, "KILLED"),
        (None, "CANCELLED", False, "KILLED"),
        (TERMINATED, GONE, False, "LOST"),
        (None, GONE, False, "LOST"),
        (None, GONE, True, "KILLED"),
        (None, "FAILED", False, "LOST"),
        (None, "COMPLETED", False, "LOST"),
        (JobReport(status=143, stopped=True, timed_out=True), "FAILED", False, "TIMED_OUT"),
        (JobReport(status=143, stopped=True, timed_out=True), None, True, "KILLED"),
        (JobReport(status=143, timed_out=True), None, True, "TIMED_OUT"),
        (JobReport(status=126, rejected="no such program: x"), "FAILED", False, "REJECTED"),
    ],
)
def test_what_an_end_means(reported: JobReport | None, state: str | None, asked: bool, outcome: str) -> None:
    found, notes = judge(seen_of(reported, state, asked=asked, timeout=5, printed="slurmstepd: error"))
    assert AttemptOutcome.Name(found) == outcome
    assert notes or outcome in ("SUCCEEDED", "FAILED", "KILLED"), "what nobody asked for is explained"


class Scripted:
    """An HTTP server that answers as it was told, and notes each request."""

    def __init__(self, answers: dict[tuple[str, str], Any]) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                content = json.loads(self.rfile.read(length)) if length else None
                asked.append((self.command, self.path, content))
                status, answer = answers[self.command, self.path.partition("?")[0]]
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _answer

            def log_message(self, *arguments: object) -> None:
                """Log nothing, because nobody would read it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def client(self, folder: Path, version: str) -> SlurmRest:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text("a.b.c")
        url = f"http://127.0.0.1:{self.server.server_port}"
        return SlurmRest(SlurmSettings(directory=folder, base_url=url, user="me", token_file=token, api_version=version))


@pytest.fixture
def later() -> Iterator[Scripted]:
    """What slurmrestd's documentation says of v0.0.40, because Slurm 22.05 is the latest at hand."""
    number = {"set": True, "infinite": False, "number": 7}
    unset = {"set": False, "infinite": False, "number": 0}
    jobs = [
        {"job_id": 7, "name": "daggyr-x", "job_state": ["PENDING"], "state_reason": "JobHeldUser"}
        | {"array_job_id": number, "array_task_id": unset, "array_task_string": "1-2,..."},
        {"job_id": 9, "name": "daggyr-x", "job_state": ["RUNNING", "CONFIGURING"], "state_reason": "None"}
        | {"array_job_id": number, "array_task_id": {**unset, "set": True}, "array_task_string": ""},
        {"job_id": 8, "name": "other", "job_state": ["RUNNING"]},
    ]
    api = "/slurm/v0.0.40"
    scripted = Scripted(
        {
            ("GET", f"{api}/jobs"): (200, {"jobs": jobs, "errors": []}),
            ("POST", f"{api}/job/submit"): (200, {"job_id": 7, "errors": []}),
            ("DELETE", f"{api}/job/7_1"): (500, {"errors": [{"error": "Invalid job id specified", "error_number": 2017}]}),
            ("POST", f"{api}/job/7"): (401, {}),
        }
    )
    yield scripted
    scripted.close()


async def test_later_versions_of_the_api_are_understood(later: Scripted, tmp_path: Path) -> None:
    client = later.client(tmp_path, "v0.0.40")
    found = {(status.job_id, status.index): (status.state, status.held) for status in await client.jobs("daggyr-")}
    held = ("PENDING", True)
    assert found == {("7", 1): held, ("7", 2): held, ("7", -1): held, ("7", 0): ("RUNNING", False)}
    job = Job(
        name="n",
        script="#!/bin/sh\n",
        size=3,
        needs=Needs(cores=2, memory_mb=10, gres=(("gpu", 1),), minutes=5),
        directory=tmp_path,
        output=tmp_path / "%a",
        environment={"A": "1"},
    )
    assert await client.submit(job) == "7"
    asked = later.asked[-1][2]["job"]
    assert asked["hold"] is True and asked["requeue"] is False and asked["array"] == "0-2"
    assert asked["environment"] == ["A=1"]
    assert asked["time_limit"] == {"set": True, "infinite": False, "number": 5}
    assert asked["tres_per_node"] == "gres/gpu:1"
    await client.cancel(["7_1"])  # the job has ended, so that the error is passed over
    with pytest.raises(SlurmUnavailable, match="token"):
        await client.release("7")


async def test_a_slurmrestd_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("a.b.c")
    with socket.socket() as reserved:  # nobody listens, and nobody else can
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        client = SlurmRest(SlurmSettings(directory=tmp_path, base_url=url, user="me", token_file=token))
        with pytest.raises(SlurmUnavailable, match="slurmrestd at http://127"):
            await client.jobs("daggyr-")
