"""Every byte that a task writes stands in its own output, and nothing else does: many slots, chatty tasks, odd sizes.

Tasks write lines with their own name to both streams and end out of order, for they write between nothing and 100 kB. Some read
standard input, some are generators, some stand in a folder of their own, some fail. Afterwards both outputs of every task are
read and compared with what its name says.
"""

from __future__ import annotations

from support.deployment import FARM, Deployment, Task, shell, task

from daggyr.client import Client
from daggyr.v1.task_pb2 import RETURNED, STDERR, STDOUT, OutputStream

NUMBERS = 150  # tasks of each kind: several times the slots in all, and lines() from none to nearly 5,000
PLANS = 12  # generators, with PLANNED tasks each
PLANNED = 10

# A generator's tasks tell their names like all others.
PLAN = r"""
i=0; printf '{'
while [ $i -lt $1 ]; do
    [ $i = 0 ] || printf ','
    printf '"planned-%s-%s": {"details": {"command": ' "$2" $i
    printf '["sh", "-c", "echo out $DAGGYR_TASK_ID; echo err $DAGGYR_TASK_ID >&2"]}}'
    i=$((i + 1))
done
printf '}'; echo "err $2" >&2
"""


def lines(number: int) -> int:
    """How many lines the task `long` of a number writes."""
    return number * 37 % 5000


def tasks() -> dict[str, Task]:
    return {
        "short": shell("echo out {{N}}; echo err {{N}} >&2"),
        "long": shell("yes out {{N}} | head -n $(({{N}} * 37 % 5000)); yes err {{N}} | head -n $(({{N}} * 37 % 5000 / 2)) >&2"),
        "input": shell("cat; echo err {{N}} >&2", stdin="in {{N}}\n" * 50),
        "folder": shell("echo out {{N}}; pwd >&2", working_directory="folder"),
        "silent": task("/bin/true", "{{N}}"),
        "failing": shell("echo out {{N}}; echo err {{N}} >&2; exit 3"),
        "plan": task("sh", "-c", PLAN, "sh", str(PLANNED), "{{P}}", is_generator=True),
    }


def expected(folder: str, task_id: str) -> tuple[bytes, bytes]:
    """What a task of this name writes to its two streams."""
    kind, _, value = task_id.partition(".")
    number = value.rpartition(":")[2]
    out, err = f"out {number}\n", f"err {number}\n"
    if kind == "long":
        out, err = out * lines(int(number)), err * (lines(int(number)) // 2)
    elif kind == "input":
        out = f"in {number}\n" * 50
    elif kind == "folder":
        err = f"{folder}/folder\n"
    elif kind == "silent":
        out = err = ""
    elif kind.startswith("planned"):
        out, err = f"out {task_id}\n", f"err {task_id}\n"
    elif kind == "plan":
        planned = (
            f'"planned-{number}-{i}": {{"details": {{"command": '
            '["sh", "-c", "echo out $DAGGYR_TASK_ID; echo err $DAGGYR_TASK_ID >&2"]}}'
            for i in range(PLANNED)
        )
        out = "{" + ",".join(planned) + "}"
    return out.encode(), err.encode()


async def output(client: Client, run_id: int, task_id: str, stream: OutputStream) -> bytes:
    return b"".join([piece.data async for piece in client.output(run_id, task_id, stream=stream)])


async def compare_everything(deployment: Deployment) -> None:
    (deployment.work / "folder").mkdir()
    parameters = {"{{N}}": [str(number) for number in range(NUMBERS)], "{{P}}": [str(plan) for plan in range(PLANS)]}
    run = deployment.complete(tasks(), code=1, parameters=parameters)
    commands = 6 * NUMBERS + PLANS + PLANS * PLANNED
    wrong, compared = [], 0
    async with deployment.client() as client:
        async for page in client.tasks(run["run_id"]):
            for each in page:
                kind = each.task_id.partition(".")[0]
                if each.attempt_count == 0:
                    continue  # a head or a tail
                compared += 1
                written = [await output(client, run["run_id"], each.task_id, stream) for stream in (STDOUT, STDERR)]
                told = await client.task(run["run_id"], each.task_id)
                wanted = expected(str(deployment.work), each.task_id)
                code = 3 if kind == "failing" else 0
                *earlier, last = told.attempts
                once = last.result.exit_code == code and all(attempt.result.outcome == RETURNED for attempt in earlier)
                if tuple(written) != wanted or not once:
                    wrong.append(f"{each.task_id}: {told.attempts}, wrote {[text[:80] for text in written]}")
    assert not wrong, f"{len(wrong)} are wrong, such as {wrong[0]}"
    assert compared == commands
    assert run["task_states"]["ERRORED"] == NUMBERS
    assert "signal" not in deployment.logs()  # no agent was ended by one


async def test_a_local_pool_of_64_workers(deployment: Deployment) -> None:
    deployment.start_server("--workers", "64")
    await compare_everything(deployment)


async def test_two_agents_of_a_hundred_slots(deployment: Deployment) -> None:
    deployment.start_server(config=FARM)
    for name in ("one", "two"):
        deployment.start_agent(name, "--resource", "cores=100")
    await compare_everything(deployment)
