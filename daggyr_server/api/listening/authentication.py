"""Who may call what: a token for each role, checked once a call before any of its messages is read.

`listener` puts an `Authentication` in front of every service behind a TCP socket. A token travels as RFC 6750 says, in the
metadata entry `authorization: Bearer TOKEN`. Clients call Runs, agents call Agents, and reflection and health answer both. Only
`Health.Check` is open to all, because probes carry no tokens. A call takes one of the places of its token (`places`), so that
callers without a token cannot keep others out. Neither logs nor answers ever hold a token.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from daggyr.tokens import MIN_BYTES, Role, TokenError
from daggyr_server.api.listening.places import MAX_CALLS, Places, StrangersPlaces
from daggyr_server.refused_callers import RefusedCallers

_OPEN = "/grpc.health.v1.Health/Check"
_EITHER: frozenset[Role] = frozenset({"client", "agent"})
_ROLES: dict[str, frozenset[Role]] = {
    "daggyr.v1.Runs": frozenset({"client"}),
    "daggyr.v1.Agents": frozenset({"agent"}),
    "grpc.health.v1.Health": _EITHER,
    "grpc.reflection.v1.ServerReflection": _EITHER,
    "grpc.reflection.v1alpha.ServerReflection": _EITHER,
}

_ADVICE = (
    "Tokens lie in the state folder of the user who started the server (~/.local/state/daggyr/client.token and agent.token): "
    "call as that user, or name a copy with --token-file"
)


@dataclass(frozen=True)
class Tokens:
    """The token of each role. Raises TokenError if one is too short, or if both are the same and cannot tell roles apart."""

    client: str = field(repr=False)
    agent: str = field(repr=False)

    def __post_init__(self) -> None:
        if min(len(self.client), len(self.agent)) < MIN_BYTES:
            raise TokenError(f"a token has less than {MIN_BYTES} bytes: let the server make another by deleting its file")
        if self.client == self.agent:
            raise TokenError("clients and agents have the same token: give them different token files")

    def holder(self, authorizations: Sequence[str]) -> tuple[Role | None, str]:
        """The role whose token the `authorization` entries of a call hold; None, with the reason, if there is none.

        Tokens are compared in constant time.
        """
        if not authorizations:
            return None, "there is no token"
        scheme, _, token = authorizations[0].partition(" ") if len(authorizations) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not token:
            return None, "the authorization is not one `Bearer TOKEN`"
        presented = token.strip(" ").encode()
        # Both are compared, whatever the first comparison says, so that the time tells nothing.
        known: tuple[tuple[Role, str], ...] = (("client", self.client), ("agent", self.agent))
        matches = [role for role, own in known if hmac.compare_digest(presented, own.encode())]
        return (matches[0], "") if matches else (None, "the token is not one of this server's")


class Authentication(grpc.aio.ServerInterceptor):
    """Stands in front of the services. A call gets through, or ends as UNAUTHENTICATED without a valid token, or as
    PERMISSION_DENIED with the token of another role. Tokens may be replaced while it is in use."""

    def __init__(
        self,
        tokens: Tokens,
        refused: RefusedCallers | None = None,
        *,
        calls: int = MAX_CALLS,
        strangers: StrangersPlaces | None = None,
    ) -> None:
        """`refused` is told of each refusal. Each token has `calls` places, and what has none those of `strangers`."""
        self._tokens = tokens
        self._refused = refused or RefusedCallers()
        self._strangers = strangers or StrangersPlaces()
        self._calls = calls
        self._places = {role: Places(role, calls) for role in _EITHER}

    def replace(self, tokens: Tokens) -> None:
        """Take `tokens` from now on, and end the calls that came with other ones."""
        for role in _EITHER:
            if getattr(tokens, role) != getattr(self._tokens, role):
                gone, self._places[role] = self._places[role], Places(role, self._calls)
                gone.end_all(grpc.StatusCode.UNAUTHENTICATED, f"the {role} token was replaced. {_ADVICE}")
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """gRPC calls this once a call. Only callers with a token are told that no service has a method."""
        method = handler_call_details.method
        service = method.rpartition("/")[0].removeprefix("/")
        entries = [value for key, value in handler_call_details.invocation_metadata or () if key == "authorization"]
        role, fault = self._tokens.holder([value if isinstance(value, str) else "" for value in entries])
        allowed = _ROLES.get(service)
        needed = " or ".join(sorted(allowed or _EITHER))
        if role is None:
            if method == _OPEN:
                open_to_all = await continuation(handler_call_details)
                return open_to_all and self._strangers.handler(method, open_to_all)
            return self._refusal(grpc.StatusCode.UNAUTHENTICATED, f"{fault}: this call needs the {needed} token. {_ADVICE}")
        if allowed is not None and role not in allowed:
            message = f"the token is the {role} token: this call needs the {needed} token. {_ADVICE}"
            return self._refusal(grpc.StatusCode.PERMISSION_DENIED, message)
        handler = await continuation(handler_call_details)
        if allowed is None and handler is not None:
            return self._refusal(grpc.StatusCode.PERMISSION_DENIED, "no token opens this service")
        return handler and self._places[role].handler(method, handler)

    def _refusal(self, code: grpc.StatusCode, message: str) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler that ends the call without reading a message. On the wire, it fits methods of every kind."""

        async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            self._refused.note(context.peer(), f"{code.name}, {message.partition(': ')[0]}")
            await context.abort(code, message)

        return self._strangers.handler("", grpc.stream_stream_rpc_method_handler(refuse))
