"""An agent that has attempts and results of another tracker ends and forgets them, and is let in."""

from __future__ import annotations

import signal
from pathlib import Path

from farm import LEDGER, Farm
from support.deployment import Deployment, is_gone, shell, until


def test_results_of_another_tracker_are_nobodys(deployment: Deployment, tmp_path: Path) -> None:
    """The other tracker's run has the same numbers. Results of the first tracker's attempts are not taken for it."""
    first = Farm(deployment, f"sqlite:{tmp_path}/first.db")
    first.start()
    ended, runs = deployment.gate("ended"), deployment.gate("runs")
    (agent,) = first.agents("one")
    run_id = deployment.submit(
        {"ended": shell(f"{ended.hold}; {LEDGER}; echo of the first"), "runs": shell(f"{runs.hold}; {LEDGER}; echo of the first")}
    )
    ended.reached()
    pid = runs.reached()
    for name in ("ended", "runs"):
        deployment.running(run_id, name)  # so that the result alone is still to be written down
    first.kill()
    first.result_kept("one", ended.open)
    assert first.performed() == [("ended", 1)]
    # A second coordinator has the same address. It assigns attempts to the agent before the agent has said a word.
    agent.process.send_signal(signal.SIGSTOP)
    second = Farm(deployment, f"sqlite:{tmp_path}/second.db")
    second.start()
    run_id = deployment.submit({"ended": shell("echo of the second"), "runs": shell("echo of the second")})
    assert run_id == 1
    agent.process.send_signal(signal.SIGCONT)
    assert deployment.watch(run_id)["task_states"] == {"COMPLETED": 2}
    for name in ("ended", "runs"):
        (attempt,) = deployment.task(run_id, name)["attempts"]
        assert (attempt["attempt"], attempt["stdout"]) == (1, "of the second\n")
    until(lambda: is_gone(pid), "the end of what ran for the first")
    # The first coordinator, when it is back, repeats the attempts that its agent has no more.
    second.kill()
    first.start()
    ended.open()
    runs.open()
    assert deployment.watch(1)["task_states"] == {"COMPLETED": 2}
    for name in ("ended", "runs"):
        attempts = deployment.task(1, name)["attempts"]
        assert [(each["attempt"], each["outcome"]) for each in attempts] == [(1, "LOST"), (2, "SUCCEEDED")]
        assert attempts[1]["stdout"] == "of the first\n"
