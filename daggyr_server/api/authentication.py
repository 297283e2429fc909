"""Who may call what: a token for each role, checked once a call before anything of its messages is read.

`listener` puts an `Authentication` in front of every service behind a TCP socket. A token travels as RFC 6750 says, in the
metadata entry `authorization: Bearer TOKEN`. Clients call Runs, agents call Agents, reflection answers either of them,
and health checks are open to all, as probes carry no tokens. Neither logs nor answers ever hold a token.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from daggyr.tokens import Role, TokenError

_log = logging.getLogger(__name__)

_OPEN = "grpc.health.v1.Health"
_EITHER: frozenset[Role] = frozenset({"client", "agent"})
_ROLES: dict[str, frozenset[Role]] = {
    "daggyr.v1.Runs": frozenset({"client"}),
    "daggyr.v1.Agents": frozenset({"agent"}),
    "grpc.reflection.v1.ServerReflection": _EITHER,
    "grpc.reflection.v1alpha.ServerReflection": _EITHER,
}

_ADVICE = (
    "Tokens lie in the state folder of the user who started the server (~/.local/state/daggyr/client.token and agent.token): "
    "call as that user, or name a copy with --token-file"
)


@dataclass(frozen=True)
class Tokens:
    """The token of each role. Raises TokenError if one is empty or both are the same: then they would not tell roles apart."""

    client: str = field(repr=False)
    agent: str = field(repr=False)

    def __post_init__(self) -> None:
        if not self.client or not self.agent:
            raise TokenError("a token is empty: let the server make another by deleting its file")
        if self.client == self.agent:
            raise TokenError("clients and agents have the same token: give them different token files")

    def holder(self, authorizations: Sequence[str]) -> tuple[Role | None, str]:
        """Whose token the `authorization` entries of a call hold; None, and the reason, if nobody's. In constant time."""
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
    """Lets a call through to its service, or answers it with UNAUTHENTICATED (no valid token) or PERMISSION_DENIED (the
    token of another role). It costs nothing a message: a call that is let through gets its service's own handler."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Called by grpc once a call. A method that no service has is told apart only by those with a token."""
        service = handler_call_details.method.rpartition("/")[0].removeprefix("/")
        if service == _OPEN:
            return await continuation(handler_call_details)
        entries = [value for key, value in handler_call_details.invocation_metadata or () if key == "authorization"]
        role, fault = self._tokens.holder([value if isinstance(value, str) else "" for value in entries])
        allowed = _ROLES.get(service)
        needed = " or ".join(sorted(allowed or _EITHER))
        if role is None:
            return _refusal(grpc.StatusCode.UNAUTHENTICATED, f"{fault}: this call needs the {needed} token. {_ADVICE}")
        if allowed is not None and role not in allowed:
            message = f"the token is the {role} token: this call needs the {needed} token. {_ADVICE}"
            return _refusal(grpc.StatusCode.PERMISSION_DENIED, message)
        handler = await continuation(handler_call_details)
        if allowed is None and handler is not None:
            return _refusal(grpc.StatusCode.PERMISSION_DENIED, "no token opens this service")
        return handler


def _refusal(code: grpc.StatusCode, message: str) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that ends the call without reading a message; to the wire it fits every kind of method."""

    async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        _log.info("refused a call from %s: %s", context.peer(), code.name)
        await context.abort(code, message)

    return grpc.stream_stream_rpc_method_handler(refuse)
