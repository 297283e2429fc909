"""Where a server listens: ports, unix sockets and TLS, with real connections."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from services import STREAM_STREAM, TOKENS, UNARY_UNARY, serving, status
from support.waiting import DEADLINE

from daggyr.address import AddressError, Tls
from daggyr.channel import open_channel, token_metadata
from daggyr_server import config
from daggyr_server.api.listening import listener
from daggyr_server.api.listening.binding import ListenerError
from daggyr_server.api.listening.listener import Listener

CLIENT = (f"Bearer {TOKENS.client}",)
OK = (grpc.StatusCode.OK, "")


def knows_localhost() -> bool:
    try:
        return bool(socket.getaddrinfo("localhost", None))
    except socket.gaierror:
        return False


@pytest.fixture
def private_folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


async def answers(address: str, *, tls: Tls | None = None) -> bool:
    """Whether a client with a token gets through. If it does not, the reason must be that there is no connection."""
    async with open_channel(address, tls=tls) as channel:
        code, _ = await status(channel, UNARY_UNARY, authorization=CLIENT)
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return code is grpc.StatusCode.OK


async def test_port_0_gives_a_free_port_and_the_real_address() -> None:
    async with serving("127.0.0.1:0") as first, serving("127.0.0.1:0") as second:
        assert first != second
        assert not first.endswith(":0")
        assert await answers(first)
        assert await answers(second)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
async def test_a_second_server_on_a_port_is_refused_and_the_first_goes_on(host: str) -> None:
    if host == "localhost" and not knows_localhost():
        pytest.skip("the name localhost means nothing here: /etc/hosts lacks it")
    async with serving("127.0.0.1:0") as address:
        with pytest.raises(ListenerError, match="another program listens there already"):
            async with serving(f"{host}:{address.rpartition(':')[2]}"):
                pass
        assert await answers(address)


async def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(ListenerError, match="no such address"):
        async with serving("192.0.2.1:0"):  # RFC 5737: documentation only
            pass


# Names of hosts have letters, digits and hyphens, in parts of 1 to 63 bytes (RFC 1123, 2.1), so that no name server need be
# asked.
@pytest.mark.parametrize("host", ["no-such!host", "no..such.host", "x" * 64])
async def test_a_name_that_means_no_host_is_refused(host: str) -> None:
    with pytest.raises(ListenerError, match=f"no address of '{re.escape(host)}'"):
        async with serving(f"{host}:0"):
            pass


async def test_what_is_no_address_or_lacks_tokens_is_refused() -> None:
    with pytest.raises(AddressError):
        Listener("2503", tokens=TOKENS)
    with pytest.raises(ListenerError, match="needs tokens"):
        Listener("127.0.0.1:0", tokens=None)


async def test_a_unix_socket_is_its_users_own_and_needs_no_token(tmp_path: Path) -> None:
    path = tmp_path / "own" / "server.sock"
    async with serving(f"unix:{path}", tokens=None) as address:
        assert address == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        async with open_channel(address) as channel:
            assert await status(channel, UNARY_UNARY) == OK
            assert await status(channel, STREAM_STREAM) == OK
    assert not path.exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(private_folder: Path) -> None:
    path = private_folder / "server.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(f"unix:{path}", tokens=None) as address:
        with pytest.raises(ListenerError, match="another program listens there already"):
            async with serving(f"unix:{path}", tokens=None):
                pass
        assert await answers(address)


async def test_a_path_that_no_socket_can_have_is_refused(private_folder: Path) -> None:
    file = private_folder / "file"
    file.write_text("kept")
    for path, reason in (
        (file, "is no socket"),
        (private_folder / ("x" * 108), "longer than 107 bytes"),
        (file / "server.sock", "Not a directory|File exists"),
    ):
        with pytest.raises(ListenerError, match=reason):
            async with serving(f"unix:{path}", tokens=None):
                pass
    assert file.read_text() == "kept"


async def test_a_folder_that_others_may_enter_is_refused(open_folder: Path) -> None:
    with pytest.raises(ListenerError, match="others may enter"):
        async with serving(f"unix:{open_folder}/server.sock", tokens=None):
            pass
    assert not (open_folder / "server.sock").exists()


async def test_tls_serves_those_who_trust_its_authority_and_wants_tokens_all_the_same(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path, "authority"), Authority(tmp_path, "other")
    pair = authority.sign("server")
    async with serving(tls=config.Tls(certificate=pair.certificate, key=pair.key)) as address:
        assert await answers(address, tls=Tls(authority=authority.certificate))
        assert not await answers(address, tls=Tls(authority=other.certificate))
        assert not await answers(address)
        async with open_channel(address, tls=Tls(authority=authority.certificate)) as channel:
            assert (await status(channel, UNARY_UNARY))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert await answers(address, tls=Tls(authority=authority.certificate))


async def test_with_a_client_authority_only_its_clients_get_in(tmp_path: Path) -> None:
    authority, clients = Authority(tmp_path, "authority"), Authority(tmp_path, "clients")
    server, member = authority.sign("server"), clients.sign("member")
    stranger = Authority(tmp_path, "other").sign("stranger")
    tls = config.Tls(certificate=server.certificate, key=server.key, client_ca=clients.certificate)
    async with serving(tls=tls) as address:
        trusted = authority.certificate
        assert not await answers(address, tls=Tls(authority=trusted))
        assert not await answers(address, tls=Tls(authority=trusted, certificate=stranger.certificate, key=stranger.key))
        assert not await answers(address, tls=Tls(authority=trusted, certificate=server.certificate, key=server.key))
        assert await answers(address, tls=Tls(authority=trusted, certificate=member.certificate, key=member.key))


async def test_tls_files_that_cannot_serve_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    one, two = authority.sign("one"), authority.sign("two")
    locked = authority.sign("locked", passphrase=b"secret")
    rubbish, missing = tmp_path / "rubbish.pem", tmp_path / "missing.pem"
    rubbish.write_text("not a certificate")
    for certificate, key, client_ca, reason in (
        (one.certificate, Path("/dev/zero"), None, r"/dev/zero is larger than 4,194,304 bytes.*`key` in \[server\.tls\]"),
        (missing, one.key, None, r"cannot read .*missing\.pem, the `certificate` in \[server\.tls\]: No such file"),
        (one.certificate, missing, None, r"missing\.pem, the `key`"),
        (one.certificate, one.key, missing, r"missing\.pem, the `client_ca`"),
        (one.certificate, two.key, None, r"two\.key is not that of the certificate .*one\.pem"),
        (rubbish, one.key, None, r"rubbish\.pem .* not both PEM files"),
        (one.certificate, rubbish, None, r"rubbish\.pem are not both PEM files"),
        (one.certificate, one.key, rubbish, r"client_ca .*rubbish\.pem holds no PEM certificate"),
        (locked.certificate, locked.key, None, r"locked\.key has a passphrase"),
    ):
        with pytest.raises(ListenerError, match=reason):
            async with serving(tls=config.Tls(certificate=certificate, key=key, client_ca=client_ca)):
                pass


async def test_certificates_are_read_again_for_new_connections(tmp_path: Path) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    old, new = first.sign("old"), second.sign("new")
    trusts = [Tls(authority=authority.certificate) for authority in (first, second)]
    place = Listener("127.0.0.1:0", tokens=TOKENS, tls=config.Tls(certificate=old.certificate, key=old.key))
    address = await place.start()
    try:
        async with open_channel(address, tls=trusts[0]) as before:
            assert (await status(before, UNARY_UNARY, authorization=CLIENT))[0] is grpc.StatusCode.UNIMPLEMENTED
            old.certificate.write_bytes(new.certificate.read_bytes())
            with pytest.raises(ListenerError, match="is not that of the certificate"):
                place.read_certificates_again()
            assert await reaches(address, trusts[0]), "what cannot be used changes nothing"
            old.key.write_bytes(new.key.read_bytes())
            place.read_certificates_again()
            assert await reaches(address, trusts[1])
            assert not await reaches(address, trusts[0])
            assert (await status(before, UNARY_UNARY, authorization=CLIENT))[0] is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await place.stop(0)


async def reaches(address: str, tls: Tls) -> bool:
    async with open_channel(address, tls=tls) as channel:
        code, _ = await status(channel, UNARY_UNARY, authorization=CLIENT)
    return code is not grpc.StatusCode.UNAVAILABLE


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # an empty frame of settings (RFC 9113, 6.5)


@pytest.mark.parametrize("secured", [False, True])
async def test_connections_that_do_nothing_end_and_sessions_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secured: bool
) -> None:
    short = {"grpc.server_handshake_timeout_ms": 200, "grpc.max_connection_idle_ms": 200}
    assert short.keys() <= dict(listener.SERVER_OPTIONS).keys()
    options = ((name, short.get(name, value)) for name, value in listener.SERVER_OPTIONS)
    monkeypatch.setattr(listener, "SERVER_OPTIONS", tuple(options))
    authority = Authority(tmp_path, "authority")
    pair = authority.sign("server")
    tls = config.Tls(certificate=pair.certificate, key=pair.key) if secured else None
    trust = Tls(authority=authority.certificate) if secured else None
    async with serving(tls=tls) as address, open_channel(address, tls=trust) as channel:
        session: Any = channel.stream_stream(STREAM_STREAM)(metadata=token_metadata(TOKENS.agent))
        await session.write(b"")
        assert await session.read() == b""
        host, _, port = address.rpartition(":")
        for said in (b"", b"P", PREFACE, PREFACE + SETTINGS, b"\x16\x03\x01"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            async with asyncio.timeout(DEADLINE):
                await until_the_end(reader)
            writer.close()
        await session.write(b"")
        assert await session.read() == b""
        session.cancel()


async def until_the_end(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(4096):
            pass
    except ConnectionError:
        pass


async def test_a_server_that_grpc_ends_by_itself_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: float) -> None:
        raise UnicodeDecodeError("utf-8", b"/\xff", 1, 2, "invalid start byte")

    serving = Listener("127.0.0.1:0", tokens=TOKENS)
    await serving.start()
    monkeypatch.setattr(serving.server, "wait_for_termination", fail)
    with pytest.raises(ListenerError, match=r"nothing is served at 127\.0\.0\.1:0 any more, .* \(UnicodeDecodeError\)"):
        await serving.ended()
    monkeypatch.undo()
    waiting = asyncio.create_task(serving.ended())
    await serving.stop(0)
    await waiting
