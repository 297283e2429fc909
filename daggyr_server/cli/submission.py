"""Hands a specification to a server: what `run` and `submit` share.

It is apart from `document`, which reads the specification, because that needs no gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

import grpc

from daggyr.client import Client, ServerError
from daggyr_server.cli.document import name_of
from daggyr_server.cli.faults import Refused


async def submit(client: Client, spec: str, document: BinaryIO, tags: Mapping[str, str], pool: str) -> int:
    """The id of the run that `document`, opened from `spec`, became. Raises Refused if the server refuses it, or ServerError."""
    try:
        return await client.submit_document(document, tags=tags, pool=pool)
    except ServerError as error:
        if error.code is grpc.StatusCode.INVALID_ARGUMENT:
            raise Refused(name_of(spec), str(error)) from None
        raise
