"""Loads gRPC without its own log, which has a line for each stranger whose handshake fails, and no limit.

`daggyr-server` imports this before anything else that imports grpc: only then does gRPC look at the variable. Whoever sets it by
hand gets the log. What the coordinator starts finds the environment as it was.
"""

from __future__ import annotations

import os

_NAME = "GRPC_VERBOSITY"

if _NAME in os.environ:
    import grpc
else:
    os.environ[_NAME] = "NONE"
    import grpc

    del os.environ[_NAME]

__all__ = ["grpc"]
