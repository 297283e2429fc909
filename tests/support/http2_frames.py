"""Calls written by hand as HTTP/2 frames (RFC 9113, RFC 7541), for what no gRPC library would send.

A test connects with `opened` and sends what `call` and `reset` give. Header fields travel as literals, without Huffman's code.
"""

from __future__ import annotations

import socket

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS = 1, 3, 4
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_CANCEL = 8


def opened(address: str) -> socket.socket:
    """A connection to HOST:PORT on which calls may be sent."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(_PREFACE + _frame(_SETTINGS, 0, 0) + _frame(_SETTINGS, _ACK, 0))
    return connection


def call(stream: int, path: bytes, *fields: tuple[bytes, bytes], complete: bool = True) -> bytes:
    """The beginning of a gRPC call; its end too if it is `complete`. `stream` is odd, and higher with each call."""
    head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"here"), (b"te", b"trailers")]
    block = b"".join(_literal(*field) for field in [*head, (b"content-type", b"application/grpc"), *fields])
    return _frame(_HEADERS, _END_HEADERS | (_END_STREAM if complete else 0), stream, block)


def reset(stream: int) -> bytes:
    """The caller gives the call up."""
    return _frame(_RST_STREAM, 0, stream, _CANCEL.to_bytes(4))


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    assert len(payload) <= 16_384, "larger than a frame"
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,))
    size -= 127
    coded = [127]
    while size >= 128:
        coded.append(size % 128 | 128)
        size //= 128
    return bytes((*coded, size))
