"""A Postgres that is stopped, so that it takes everything and answers nothing: people are told at once, and all goes on later."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from farm import LEDGER, Farm
from faults_tracker import new_tracker
from support.deployment import Deployment, shell, until
from support.postgres_server import PostgresServer


@pytest.fixture
def silent(deployment: Deployment, postgres: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Farm]:
    """A server whose database is stopped by the test. It goes on in the end whatever happens."""
    farm = Farm(deployment, new_tracker("postgresql", request), "lease = 60")
    farm.start()
    farm.agents("one", cores=4)
    try:
        yield farm
    finally:
        postgres.signal(signal.SIGCONT)
        farm.coordinator.end()


def stopped(deployment: Deployment, farm: Farm, postgres: PostgresServer) -> int:
    """A run one of whose tasks has ended since the database was stopped, while another one is held."""
    gate, held = deployment.gate("first"), deployment.gate("second")
    run_id = deployment.submit(
        {
            "a": shell(f"{gate.hold}; {LEDGER}", children=["b"]),
            "b": shell(LEDGER),
            "c": shell(f"{held.hold}; {LEDGER}"),
        }
    )
    gate.reached()
    held.reached()
    postgres.signal(signal.SIGSTOP)
    gate.open()
    farm.wait_for(1)
    held.open()
    return run_id


def test_what_is_asked_is_answered_in_words_and_all_goes_on_later(
    deployment: Deployment, silent: Farm, postgres: PostgresServer
) -> None:
    run_id = stopped(deployment, silent, postgres)
    until(lambda: "does not answer" in silent.coordinator.said(), "the silence, in the log")
    told = deployment.daggyr("show", str(run_id))
    assert told.code == 0 and "does not answer" in told.out, told
    told = deployment.daggyr("task", str(run_id), "a")
    assert told.code == 3 and "cannot do that now: the tracker" in told.err and "does not answer" in told.err, told
    until(lambda: "cannot be made durable" in deployment.daggyr("show", str(run_id)).out, "the trouble, in `show`")
    postgres.signal(signal.SIGCONT)
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    until(lambda: "answers again" in silent.coordinator.said(), "the end of the silence, in the log")
    assert sorted(silent.performed()) == [("a", 1), ("b", 1), ("c", 1)]
    assert "does not answer" not in deployment.daggyr("show", str(run_id)).out


def test_a_server_ends_in_time_and_the_next_one_goes_on(deployment: Deployment, silent: Farm, postgres: PostgresServer) -> None:
    """The server's grace is what Deployment.end allows. What was not durable is told again by the agent."""
    run_id = stopped(deployment, silent, postgres)
    silent.coordinator.end(signal.SIGTERM)
    postgres.signal(signal.SIGCONT)
    silent.start()
    assert deployment.watch(run_id)["state"] == "COMPLETED"
    assert sorted(silent.performed()) == [("a", 1), ("b", 1), ("c", 1)]


def test_a_start_is_refused_in_words(deployment: Deployment, silent: Farm, postgres: PostgresServer) -> None:
    silent.coordinator.end(signal.SIGTERM)
    postgres.signal(signal.SIGSTOP)
    program = deployment.start("daggyr-server", "--tracker", silent.tracker, "--listen", silent.listen)
    assert program.wait() == 2
    assert "daggyr-server: the tracker postgresql://" in program.said() and "does not answer" in program.said()
