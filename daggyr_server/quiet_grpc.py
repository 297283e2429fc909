"""Loads gRPC without its own log, which has a line for each stranger whose handshake fails, without limit.

`daggyr-server` imports this before anything else that imports grpc, because gRPC looks at its variable only when it is loaded. A
person who sets the variable gets the log. Programs that the coordinator starts find the environment as it was.

gRPC's Python code logs each path and each value of metadata that is not UTF-8, with a traceback and as it came, which may be half
a token. These lines are left out of the log; the calls end as other refused calls do. Nothing else is changed.
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
    # An error of a servicer is logged: its traceback ends in a file of Python, not in one of gRPC.
    return trace is not None and not trace.tb_frame.f_code.co_filename.endswith(".pyx.pxi")


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_text_of_a_caller)

__all__ = ["grpc"]
