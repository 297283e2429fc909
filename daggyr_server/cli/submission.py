"""Hands a specification to a server.

`run` and `submit` call this. It is not part of `document`, which reads the specification, because that does without gRPC. Nothing
here waits for the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

import grpc

from daggyr.client import Client, ServerError
from daggyr_server.cli.document import name_of
from daggyr_server.cli.errors import SpecRefused


async def submit(client: Client, spec: str, document: BinaryIO, tags: Mapping[str, str], pool: str) -> int:
    """Submit `document`, which was opened from `spec`.

    Returns the run's id. Raises SpecRefused if the server refuses it, or ServerError.
    """
    try:
        return await client.submit_document(document, tags=tags, pool=pool)
    except ServerError as error:
        if error.code is grpc.StatusCode.INVALID_ARGUMENT:
            raise SpecRefused(name_of(spec), str(error)) from None
        raise
