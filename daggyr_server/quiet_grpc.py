"""Loads gRPC without its own log, which has a line for each stranger whose handshake fails, and no limit.

`daggyr-server` imports this before anything else that imports grpc: only then does gRPC look at the variable. Whoever sets it by
hand gets the log. What the coordinator starts finds the environment as it was.

In Python, gRPC logs each path and each value of metadata that is not UTF-8, with a traceback and as it came, which may be half a
token: these lines are left out. The calls are refused as others are.
"""

from __future__ import annotations

import logging
import os

_NAME = "GRPC_VERBOSITY"

if _NAME in os.environ:
    import grpc
else:
    os.environ[_NAME] = "NONE"
    import grpc

    del os.environ[_NAME]


def _is_no_text_of_a_caller(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, UnicodeDecodeError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    # What a servicer of ours could not decode is told: that has a file of Python.
    return trace is not None and not trace.tb_frame.f_code.co_filename.endswith(".pyx.pxi")


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_text_of_a_caller)

__all__ = ["grpc"]
