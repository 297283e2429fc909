"""Callers that are wrong: unknown runs and tasks, wrong tokens, messages that are none, and clients that go away.

Whatever they do, the server goes on. The fixtures `standing` and `unharmed` test that after each test.
"""

from __future__ import annotations

import errno
import io
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from support.deployment import Deployment, shell, task
from support.waiting import DEADLINE, until

from daggyr.channel import open_channel, token_metadata
from daggyr.client import Client, ServerError
from daggyr.v1 import runs_pb2
from daggyr.v1.agents_pb2_grpc import AgentsStub
from daggyr.v1.runs_pb2_grpc import RunsStub

RUBBISH = b"\xff\xff\xff\xff no protobuf"
_LARGEST = {
    FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1,
    FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1,
    FieldDescriptor.CPPTYPE_INT64: 2**63 - 1,
    FieldDescriptor.CPPTYPE_INT32: 2**31 - 1,
}
UNARY = ("SubmitRun", "ListRuns", "GetRun", "ListTasks", "GetTask", "ExplainTask", "KillRun", "RetryRun", "DrainAgent")


@pytest.mark.parametrize("address", ["port", "unix:/nowhere/daggyr.sock"])
def test_no_server_is_reached(deployment: Deployment, address: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen, so that nobody else does
        if address == "port":
            address = f"127.0.0.1:{silent.getsockname()[1]}"
        ended = deployment.daggyr("--server", address, "runs")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith(f"daggyr: no server reached at {address}")
    assert "start one with `daggyr-server`" in ended.err


@pytest.mark.parametrize("run", ["last", "7", str(2**63 - 1), str(2**63)])
def test_an_unknown_run(unharmed: Deployment, run: str) -> None:
    for arguments in (
        ["show", run],
        ["tasks", run],
        ["task", run, "a"],
        ["why", run, "a"],
        ["watch", run],
        ["logs", run],
        ["logs", run, "a"],
        ["kill", run],
        ["retry", run],
    ):
        ended = unharmed.daggyr(*arguments)
        assert (ended.code, ended.out) == (2, ""), arguments
        assert ended.err == (
            "daggyr: there are no runs yet\n" if run == "last" else f"daggyr: there is no run {run}; `daggyr runs` lists them\n"
        )


def test_an_unknown_task_and_what_cannot_be_asked_of_a_run(standing: Deployment) -> None:
    standing.complete({"a": task("true"), "b": task("echo", "{{X}}")}, parameters={"{{X}}": ["1", "2"]})
    for arguments in (["task", "1", "x"], ["why", "1", "x"], ["logs", "1", "x"], ["retry", "1", "--task", "x"]):
        ended = standing.daggyr(*arguments)
        assert (ended.code, ended.out) == (2, ""), arguments
        assert ended.err == "daggyr: run 1 has no task 'x'; `daggyr tasks 1` lists them\n"
    for arguments, words in (
        (["kill", "1"], "has ended"),
        (["kill", "1", "a"], "has ended"),
        (["retry", "1", "--task", "b.tail"], "runs nothing"),
        (["logs", "1", "b.tail"], "runs nothing"),
        (["agent", "drain", "nobody"], "there is no agent 'nobody'"),
        (["show", "0"], "no run"),
        (["show", "-1"], ""),
        (["task", "1", "x" * 100_000], "run 1 has no task"),
    ):
        ended = standing.daggyr(*arguments)
        assert (ended.code, ended.out) == (2, ""), arguments
        assert words in ended.err


def test_tokens(unharmed: Deployment) -> None:
    """A wrong one, none, another role's, one that others may read: exit 2, and the token is nowhere in what is said."""
    client, agent = (unharmed.state / "daggyr" / f"{role}.token" for role in ("client", "agent"))
    wrong = unharmed.folder / "wrong"
    wrong.write_text("daggyr-client-" + "x" * 43 + "\n")
    wrong.chmod(0o600)
    open_to_others = unharmed.folder / "open"
    open_to_others.write_text(client.read_text())
    open_to_others.chmod(0o644)
    for path, words in (
        (wrong, "wants a valid token"),
        (agent, "it must be a client's token"),
        (open_to_others, "may be read by others"),
        (unharmed.folder / "none", "No such file"),
    ):
        ended = unharmed.daggyr("--token-file", str(path), "runs")
        assert (ended.code, ended.out) == (2, "")
        assert words in ended.err
        assert len(ended.err.splitlines()) == 1
        assert not path.exists() or path.read_text().strip() not in ended.err
    ended = unharmed.daggyr("runs", XDG_STATE_HOME=str(unharmed.folder / "elsewhere"))
    assert ended.code == 2
    assert "wants a valid token" in ended.err
    assert client.stat().st_mode & 0o777 == 0o600
    assert unharmed.token() not in unharmed.logs()


async def test_each_service_wants_its_own_role(unharmed: Deployment) -> None:
    async with open_channel(unharmed.address) as channel:
        runs, agents = RunsStub(channel), AgentsStub(channel)
        for role, code in (
            ("agent", grpc.StatusCode.PERMISSION_DENIED),
            ("nobody", grpc.StatusCode.UNAUTHENTICATED),
        ):
            metadata = token_metadata(unharmed.token(role) if role == "agent" else None)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await runs.ListRuns(runs_pb2.ListRunsRequest(), metadata=metadata)
            assert refused.value.code() is code
            assert "client token" in (refused.value.details() or "")
        for role, code in (
            ("client", grpc.StatusCode.PERMISSION_DENIED),
            ("nobody", grpc.StatusCode.UNAUTHENTICATED),
        ):
            metadata = token_metadata(unharmed.token(role) if role == "client" else None)
            session = agents.Session(metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in session:
                    pass
            assert refused.value.code() is code
            assert "agent token" in (refused.value.details() or "")


def enums_of(descriptor: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each enum field in a message type."""
    for field in descriptor.fields:
        if field.enum_type is not None:
            yield (*path, field.name)
        elif field.message_type is not None:
            yield from enums_of(field.message_type, (*path, field.name))


def with_an_unknown_value(message: Any, path: tuple[str, ...]) -> None:
    for name in path[:-1]:
        inner = getattr(message, name)
        message = inner.add() if hasattr(inner, "add") else inner
    if isinstance(getattr(message, path[-1]), int):
        setattr(message, path[-1], 99)
    else:
        getattr(message, path[-1]).append(99)


async def test_an_enum_of_no_known_value_is_an_invalid_argument(unharmed: Deployment) -> None:
    """A value that is not known is refused wherever it stands in a request of any call."""
    unharmed.complete({"a": task("true")})
    seen = []
    async with open_channel(unharmed.address) as channel:
        for method in runs_pb2.DESCRIPTOR.services_by_name["Runs"].methods:
            for path in enums_of(method.input_type):
                assert not method.client_streaming, "streams are not looked through: see malformed.py"
                request = getattr(runs_pb2, method.input_type.name)()
                with_an_unknown_value(request, path)
                call: Any = getattr(RunsStub(channel), method.name)(request, metadata=token_metadata(unharmed.token()))
                assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT, path
                assert f"{'.'.join(path)}: 99 is no " in await call.details()
                seen.append(method.name)
    assert {"ListRuns", "ListTasks", "ReadOutput", "MarkTasks"} <= set(seen)


async def test_messages_that_are_no_protobuf(unharmed: Deployment) -> None:
    metadata = token_metadata(unharmed.token())
    channel: Any
    async with open_channel(unharmed.address) as channel:
        for method in UNARY:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(f"/daggyr.v1.Runs/{method}")(RUBBISH, metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method
        for method in ("WatchRun", "ReadOutput"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in channel.unary_stream(f"/daggyr.v1.Runs/{method}")(RUBBISH, metadata=metadata):
                    pass
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, method
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.stream_unary("/daggyr.v1.Runs/SubmitRunStream")(iter([RUBBISH]), metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/daggyr.v1.Runs/NoSuchMethod")(b"", metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/daggyr.v1.Runs/GetRun")(bytes(5 << 20), metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_that_are_no_http(unharmed: Deployment) -> None:
    host, _, port = unharmed.address.rpartition(":")
    for data in (b"GET / HTTP/1.1\r\n\r\n", RUBBISH * 10_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + RUBBISH):
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
            except OSError as error:  # the server has hung up, whichever of these notices it
                assert error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)


async def test_requests_that_make_no_sense(unharmed: Deployment) -> None:
    metadata = token_metadata(unharmed.token())
    async with open_channel(unharmed.address) as channel:
        runs = RunsStub(channel)

        async def refusal(*chunks: runs_pb2.SubmitRunChunk) -> grpc.StatusCode:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await runs.SubmitRunStream(iter(chunks), metadata=metadata)
            return refused.value.code()

        header = runs_pb2.SubmitRunChunk(header=runs_pb2.SubmitRunHeader(request_id="x"))
        data = runs_pb2.SubmitRunChunk(data=b"{}")
        assert await refusal() is grpc.StatusCode.INVALID_ARGUMENT
        assert await refusal(data) is grpc.StatusCode.INVALID_ARGUMENT
        assert await refusal(header, header) is grpc.StatusCode.INVALID_ARGUMENT
        assert await refusal(header) is grpc.StatusCode.INVALID_ARGUMENT
        assert await refusal(runs_pb2.SubmitRunChunk(header=runs_pb2.SubmitRunHeader()), data) is (
            grpc.StatusCode.INVALID_ARGUMENT
        )
        for method, request in (
            (runs.SubmitRun, runs_pb2.SubmitRunRequest(request_id="y")),
            (runs.ListRuns, runs_pb2.ListRunsRequest(page_token="rubbish")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await method(request, metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert unharmed.runs() == []


async def test_numbers_at_their_types_limits_break_nothing(deployment: Deployment) -> None:
    """Each number of each request is tried alone. The server's answer is never an error of its own."""
    deployment.start_server("--tracker", "sqlite:state.db")
    deployment.complete({"a": task("true")})
    tried = 0
    async with open_channel(deployment.address) as channel:
        service = runs_pb2.DESCRIPTOR.services_by_name["Runs"]
        for method in service.methods:
            if method.client_streaming:
                continue
            kind: Any = getattr(runs_pb2, method.input_type.name)
            for field in method.input_type.fields:
                if field.is_repeated or field.cpp_type not in _LARGEST:
                    continue
                known = {"run_id": 1, "task_id": "a", "state": "STATE_QUEUED", "name": "nobody"}
                request = kind(**{name: value for name, value in known.items() if name in method.input_type.fields_by_name})
                setattr(request, field.name, _LARGEST[field.cpp_type])
                make = channel.unary_stream if method.server_streaming else channel.unary_unary
                call: Any = make(f"/{service.full_name}/{method.name}", request_serializer=kind.SerializeToString)(
                    request, metadata=token_metadata(deployment.token()), timeout=DEADLINE
                )
                code = await call.code()
                assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL), (method.name, field.name)
                tried += 1
    assert tried >= 15
    deployment.goes_on()


async def test_a_submission_that_breaks_off_is_no_run(standing: Deployment) -> None:
    document = json.dumps({"tasks": {"a": task("true")}}).encode()
    async with open_channel(standing.address) as channel:
        call = RunsStub(channel).SubmitRunStream(metadata=token_metadata(standing.token()))
        await call.write(runs_pb2.SubmitRunChunk(header=runs_pb2.SubmitRunHeader(request_id="half")))
        await call.write(runs_pb2.SubmitRunChunk(data=document[:-1]))
        call.cancel()
    async with standing.client() as client:
        # The rest never comes; the same request, sent whole, is then the first run.
        assert [list(page) async for page in client.runs()] == [[]]
        assert await client.submit_document(io.BytesIO(document), request_id="half") == 1


@pytest.mark.parametrize("arguments", [["--output", "json", "watch", "1"], ["logs", "1", "a", "-f"]])
def test_a_client_that_goes_away_in_the_middle(standing: Deployment, arguments: list[str]) -> None:
    gate = standing.gate()
    standing.submit({"a": shell(f"echo first; {gate.hold}; echo second")})
    gate.reached()
    clients = [standing.command(*arguments) for _ in range(3)]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline()
        client.kill()
        client.wait()
    gate.open()
    assert standing.watch(1)["state"] == "COMPLETED"
    assert standing.task(1, "a")["attempts"][0]["stdout"] == "first\nsecond\n"


def test_a_reader_that_closes_its_pipe(unharmed: Deployment) -> None:
    """`daggyr logs ... | head` ends a reader like this. It is no error, and the server keeps nothing of it."""
    unharmed.complete({"a": shell("head -c 900000 /dev/zero")})
    process = unharmed.command("logs", "last", "a")
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    assert (process.wait(DEADLINE), said) == (0, "")


async def test_a_client_without_patience(unharmed: Deployment) -> None:
    """The library says what went wrong, with gRPC's code."""
    async with Client(unharmed.address, token="wrong") as client:
        with pytest.raises(ServerError) as refused:
            await client.run(0)
        assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
    async with unharmed.client() as client:
        with pytest.raises(ServerError) as refused:
            await client.run(3)
        assert refused.value.code is grpc.StatusCode.NOT_FOUND


def test_the_socket_of_another_user_and_of_a_dead_server(deployment: Deployment) -> None:
    """A folder that others may enter is refused; a socket file that nobody listens at is replaced; one in use is not."""
    public = deployment.folder / "public"
    public.mkdir()
    public.chmod(0o755)
    program = deployment.start("daggyr-server", "--listen", f"unix:{public}/daggyr.sock")
    assert program.wait() == 2
    assert "others may enter" in program.said()
    private = deployment.folder / "private"
    path = Path(private / "daggyr.sock")
    first = deployment.start_server("--workers", "1", listen=f"unix:{path}")
    second = deployment.start("daggyr-server", "--listen", f"unix:{path}")
    assert second.wait() == 2
    assert "another program listens there already" in second.said()
    deployment.goes_on()
    deployment.killed = True
    first.end(signal.SIGKILL)
    until(path.exists, "the socket")
    deployment.start_server("--workers", "1", listen=f"unix:{path}")
    deployment.goes_on()
