"""Words the errors of calls to the server for a person: which address it was, which option to use, what to start.

`connection` calls this to turn each error of a client into a CommandError. No message has a token in it.
"""

from __future__ import annotations

import grpc

from daggyr.client import ServerError, Unreachable
from daggyr.tls_faults import tls_fault
from daggyr_server.cli.errors import NO_SERVER, CommandError

# Beginnings of what a server says that was reached, and whose tracker or runs are not there for now.
_OWN_WORDS = ("ask for run ", "the tracker ")


def of_server(error: ServerError, address: str, *, tls: bool, token_hint: str) -> CommandError:
    """The CommandError for `error`. `token_hint` says where the token came from, or where it was looked for."""
    if isinstance(error, Unreachable):
        return CommandError(_unreachable(error, address, tls), NO_SERVER)
    said = " ".join(str(error).split("\n"))
    match error.code:
        case grpc.StatusCode.UNAUTHENTICATED:
            return CommandError(f"the server at {address} wants a valid token: {token_hint}")
        case grpc.StatusCode.PERMISSION_DENIED:
            return CommandError(f"this token may not do that ({said}): {token_hint}; it must be a client's token")
        case grpc.StatusCode.INVALID_ARGUMENT if "\n" in str(error).strip():
            return CommandError(str(error).strip().replace("\n", "\n  "))
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "are under way" in said:
            return CommandError(f"the server at {address} has no place left: {said}", NO_SERVER)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return CommandError(_too_much(said, address))
        case (
            grpc.StatusCode.NOT_FOUND
            | grpc.StatusCode.INVALID_ARGUMENT
            | grpc.StatusCode.FAILED_PRECONDITION
            | grpc.StatusCode.ALREADY_EXISTS
            | grpc.StatusCode.OUT_OF_RANGE
            | grpc.StatusCode.ABORTED
        ):
            return CommandError(said)
        case grpc.StatusCode.UNIMPLEMENTED:
            return CommandError(f"the server at {address} does not know this call: is it a DaggyR server of this version?")
        case _:
            return CommandError(f"the server at {address} failed ({error.code.name}): {said}", NO_SERVER)


def _unreachable(error: Unreachable, address: str, tls: bool) -> str:
    """The message for a server that was not reached, with advice according to what gRPC says of the connection."""
    said = str(error)
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        if said.startswith("nothing of the specification came"):  # the server's own words
            return f"the server at {address} waited for the specification and gave up: {said}"
        return f"the server at {address} did not answer in time: it may be overloaded; try again"
    if said.startswith(_OWN_WORDS):
        return f"the server at {address} cannot do that now: {said}"
    if (fault := tls_fault(said, address, tls=tls)) is not None:
        return fault
    return (
        f"no server reached at {address} ({_reason(said)}): start one with `daggyr-server`, "
        "or name another with --server or DAGGYR_SERVER"
    )


def _too_much(said: str, address: str) -> str:
    """The message for something too large.

    gRPC (1.85) tells only which side found out, so that this says what was too large. Any other text is the server's own.
    """
    _, found, sizes = said.partition("message larger than max ")
    sizes = sizes.strip("()").replace(" vs. ", " bytes, the most is ")
    if not found:
        return said
    if "CLIENT: Sent " in said or "SERVER: Received " in said:
        return f"what was to be sent is larger than one message ({sizes}): submit it as a file, in parts, or with less in it"
    return f"the answer of the server at {address} is larger than one message ({sizes}): is it of an earlier version?"


def _reason(said: str) -> str:
    """The end of gRPC's sentence, which is the part that people understand."""
    for known in ("Connection refused", "No such file or directory", "Permission denied", "Domain name not found"):
        if known in said:
            return known.lower()
    return said.rpartition(": ")[2] or "no answer"
