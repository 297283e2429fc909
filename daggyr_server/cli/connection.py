"""Makes a client from the shared options: it finds the address, the token and the TLS files, and tells what is wrong with them.

Commands that talk to a server call `with_client`; `daggyr run` starts a server of its own and calls `client_of`. If no option
names a token, the one of this user's own server is taken (daggyr.tokens). A token never appears in a message.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from daggyr.address import DEFAULT_ADDRESS, AddressError, Tls
from daggyr.client import Client, ServerError
from daggyr.tokens import TokenError, read_token, token_file
from daggyr_server.cli.errors import CommandError
from daggyr_server.cli.interruption import tidied_up
from daggyr_server.cli.options import Settings
from daggyr_server.cli.patience import until_it_listens
from daggyr_server.cli.server_errors import of_server
from daggyr_server.cli.stdout import notice, warn

Result = TypeVar("Result")


def with_client(settings: Settings, work: Callable[[Client], Awaitable[Result]]) -> Result:
    """Call `work` with a client of the server that the options name, and return its result. Raises CommandError for any fault.

    On Ctrl-C, `work` is cancelled and KeyboardInterrupt leaves this function.
    """

    async def connected() -> Result:
        address = settings.server or DEFAULT_ADDRESS
        if settings.server is None:
            await until_it_listens()
        token, hint = _token(settings, address)
        async with client_of(address, token=token, tls=_tls(settings), token_hint=hint, insecure=settings.insecure) as client:
            return await work(client)

    with tidied_up():
        return asyncio.run(connected())


@asynccontextmanager
async def client_of(
    address: str, *, token: str | None = None, tls: Tls | None = None, token_hint: str = "", insecure: bool = False
) -> AsyncIterator[Client]:
    """A connected client. Errors of its calls leave the block as CommandError."""
    try:
        client = Client(
            address,
            token=token,
            tls=tls,
            insecure=insecure,
            notice=lambda words: notice(f"daggyr: {words}"),
            warning=warn,
        )
        async with client:
            yield client
    except AddressError as error:
        raise CommandError(str(error)) from None
    except ServerError as error:
        raise of_server(error, address, tls=tls is not None, token_hint=token_hint) from None


def _token(settings: Settings, address: str) -> tuple[str | None, str]:
    """The token, if there is one, and the advice for the case that the server does not accept it.

    A missing token file of the user's own server is no error here, because the server may not run at all, and then the user
    should be told that. A unix socket needs no token.
    """
    chosen = settings.token_file
    if chosen is None and address.startswith("unix:"):
        return None, "name the file that holds one with --token-file"
    try:
        path = chosen or token_file("client", os.environ)
    except TokenError as error:
        raise CommandError(f"{error}; or name the token's file with --token-file") from None
    if chosen is None and not path.exists():
        return None, (
            f"looked for {path}, which is not there; copy client.token from the server's user on its host "
            "(mode 0600) to there, or name it with --token-file or DAGGYR_TOKEN_FILE"
        )
    try:
        token = read_token(path)
    except TokenError as error:
        raise CommandError(str(error)) from None
    return token, f"the one in {path} is not it; copy client.token from the server's host, or name another (--token-file)"


def _tls(settings: Settings) -> Tls | None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise CommandError("--tls-cert and --tls-key go together")
    if not (settings.tls or settings.tls_ca or settings.tls_cert):
        return None
    return Tls(authority=settings.tls_ca, certificate=settings.tls_cert, key=settings.tls_key)
