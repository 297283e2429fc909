"""The client on a real connection: which calls it repeats, where it goes on after a break, and which errors it raises."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest
from scripted_server import COMPLETED, ERRORED, TOKEN, ScriptedServer

from daggyr.address import AddressError
from daggyr.client import CHUNK_BYTES, Client, ServerError, Unreachable
from daggyr.v1.run_pb2 import RunSpec

LOST = (grpc.StatusCode.UNAVAILABLE, "the server is going away")


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[Client]:
    async with Client(f"127.0.0.1:{server.port}", token=TOKEN) as connected:
        yield connected


def document(*names: str, padding: int = 0) -> io.BytesIO:
    return io.BytesIO(json.dumps({"tags": {"padding": "x" * padding}, "tasks": dict.fromkeys(names)}).encode())


async def test_a_document_travels_in_chunks_with_tags_and_pool_beside_it(client: Client, server: ScriptedServer) -> None:
    run_id = await client.submit_document(document("a", padding=5 * CHUNK_BYTES // 2), tags={"k": "v"}, pool="farm")
    assert run_id == 1
    assert len(server.chunk_sizes) == 3
    assert max(server.chunk_sizes) == CHUNK_BYTES
    assert dict(server.headers[0].tags) == {"k": "v"}
    assert server.headers[0].pool == "farm"
    assert server.headers[0].request_id


async def test_a_submission_whose_answer_was_lost_is_the_same_run_again(client: Client, server: ScriptedServer) -> None:
    server.lose_next_answer = True
    assert await client.submit_document(document("a")) == 1
    assert len(server.headers) == 2
    assert server.headers[0].request_id == server.headers[1].request_id
    assert list(server.runs) == [1]


async def test_messages_are_submitted_under_one_request_id_too(client: Client, server: ScriptedServer) -> None:
    server.broken["SubmitRun"] = [LOST]
    assert await client.submit(RunSpec(tags={"k": "v"})) == 1
    assert dict(server.runs[1].summary.tags) == {"k": "v"}
    ids = [request.request_id for method, request in server.calls if method == "SubmitRun"]
    assert len(ids) == 2
    assert ids[0] == ids[1]


BUSY = (grpc.StatusCode.CANCELLED, "")


async def test_what_a_busy_server_cancels_is_asked_again_where_that_is_safe(client: Client, server: ScriptedServer) -> None:
    await client.submit_document(document("a"))
    server.broken = {"GetRun": [BUSY] * 3, "KillRun": [BUSY], "RetryRun": [BUSY]}
    assert (await client.run(1)).run_id == 1
    await client.kill(1)
    with pytest.raises(Unreachable):
        await client.retry(1)
    assert not any(server.broken.values())


async def test_a_refused_document_is_not_sent_again(client: Client, server: ScriptedServer) -> None:
    with pytest.raises(ServerError, match=r"unknown key 'chidlren'\ntasks.b: no command") as caught:
        await client.submit_document(document("refuse", padding=8 * CHUNK_BYTES))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(server.headers) == 1


async def test_submitting_gives_up_when_no_server_comes(nowhere: str) -> None:
    told: list[str] = []
    async with Client(nowhere, token=TOKEN, patience=0.5, notice=told.append) as client:
        with pytest.raises(Unreachable):
            await client.submit_document(document("a"))
    assert told == ["no connection to the server; trying again"]


async def test_a_watch_that_is_lost_goes_on_from_the_last_change(client: Client, server: ScriptedServer) -> None:
    run = server.new_run("a", "b")
    seen: list[tuple[bool, list[str]]] = []
    async with aclosing(client.watch(0, tasks=True)) as changes:
        async for change in changes:
            seen.append((change.missed, [task.task_id for task in change.tasks]))
            if len(seen) == 1:
                await run.start("a")
            elif len(seen) == 2:
                async with run.changed:
                    server.broken["WatchRun.later"] = [LOST]
                    run.changed.notify_all()
                await run.start("b")
            elif change.run.state != COMPLETED:
                await run.end()
    assert seen == [(True, []), (False, ["a"]), (False, ["b"]), (False, [])]
    watched = [request for method, request in server.calls if method == "WatchRun"]
    assert [(request.run_id, bool(request.change_seq)) for request in watched] == [(0, False), (1, True)]


async def test_a_watch_reads_again_what_is_no_longer_kept(client: Client, server: ScriptedServer) -> None:
    run = server.new_run("a")
    missed = []
    async with aclosing(client.watch(1, tasks=True)) as changes:
        async for change in changes:
            missed.append(change.missed)
            if len(missed) == 1:
                async with run.changed:
                    run.oldest_kept = 1000
                    server.broken["WatchRun.later"] = [LOST]
                    run.changed.notify_all()
            elif len(missed) == 2:
                await run.end(ERRORED)
    assert missed == [True, True, False]


async def test_a_watch_is_not_patient_before_it_has_heard_anything(client: Client, server: ScriptedServer) -> None:
    server.new_run("a")
    server.broken["WatchRun"] = [LOST]
    with pytest.raises(Unreachable, match="going away"):
        await anext(client.watch(1))


async def test_a_watch_gives_up_when_the_server_stays_away(server: ScriptedServer) -> None:
    run = server.new_run("a")
    async with Client(f"127.0.0.1:{server.port}", token=TOKEN, patience=0.5) as client:
        changes = client.watch(1)
        await anext(changes)
        async with run.changed:
            server.broken["WatchRun.later"] = [LOST]
            server.broken["WatchRun"] = [LOST] * 100
            run.changed.notify_all()
        with pytest.raises(Unreachable):
            await anext(changes)


async def test_waiting_gives_the_run_once_it_has_ended(client: Client, server: ScriptedServer) -> None:
    run = server.new_run("a")
    waiting = asyncio.create_task(client.wait(0))
    await run.start("a")
    await run.end(ERRORED)
    ended = await waiting
    assert (ended.run_id, ended.state) == (1, ERRORED)
    assert (await client.wait(1)).state == ERRORED  # the run had ended before


async def test_waiting_for_a_run_that_there_is_not(client: Client) -> None:
    with pytest.raises(ServerError) as caught:
        await client.wait(7)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


async def test_output_that_is_lost_goes_on_at_the_last_byte(client: Client, server: ScriptedServer) -> None:
    run = server.new_run("a")
    await run.start("a")
    await run.write("a", b"one ")
    read = bytearray()
    async with aclosing(client.output(1, "a", follow=True)) as pieces:
        async for piece in pieces:
            read += piece.data
            if piece.data == b"one ":
                server.broken["ReadOutput.later"] = [LOST]
                await run.write("a", b"two ")
                await run.write("a", b"three", missing=7)
                await run.finish("a")
    assert read == b"one two three"


async def test_a_call_without_a_token_is_told_apart(server: ScriptedServer) -> None:
    async with Client(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(ServerError) as caught:
            await client.run(0)
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_server_that_is_not_there_ends_a_call_at_once(nowhere: str) -> None:
    """The call is not repeated and does not wait until its time is over."""
    told: list[str] = []
    async with Client(nowhere, token=TOKEN, notice=told.append) as client:
        with pytest.raises(Unreachable) as caught:
            await client.pools()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert told == []


async def test_an_address_that_is_none() -> None:
    with pytest.raises(AddressError, match="HOST:PORT"):
        Client("localhost")
