"""HTTP/2 and protobuf as bytes: of the right form, and wrong in one place or another."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hpack import Encoder
from hypothesis import strategies as st

if TYPE_CHECKING:
    from google.protobuf.message import Message

_DATA, _HEADERS, _SETTINGS, _CONTINUATION = 0x0, 0x1, 0x4, 0x9
"""Types of frames (RFC 9113, 6)."""
_END_STREAM, _END_HEADERS = 0x1, 0x4
_PIECE = 16_384
"""Bytes of a frame that every peer takes (RFC 9113, 4.2)."""
_LENGTH_DELIMITED = 2
"""A wire type of protobuf."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return one frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload


BEGIN = frame(_SETTINGS, 0, 0, b"")
"""What either side sends first; a client sends the preface before."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + BEGIN


def headers(*fields: tuple[str, str | bytes], end: bool = False) -> bytes:
    """Return the frames of a block of headers on the first stream of a client."""
    first, *more = _pieces(bytes(Encoder().encode(fields)))
    kinds = (_HEADERS, *(_CONTINUATION for _ in more))
    lasts = (*(0 for _ in more), _END_HEADERS)
    begin = _END_STREAM if end else 0
    return b"".join(
        frame(kind, last | (begin if kind == _HEADERS else 0), 1, piece)
        for kind, last, piece in zip(kinds, lasts, (first, *more), strict=True)
    )


def message(payload: bytes) -> bytes:
    """Return the frames of one message of gRPC, which leave the stream open."""
    return b"".join(frame(_DATA, 0, 1, piece) for piece in _pieces(struct.pack("!?I", 0, len(payload)) + payload))


def _pieces(content: bytes) -> list[bytes]:
    return [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)] or [b""]


ANSWER = headers((":status", "200"), ("content-type", "application/grpc"))
"""The head of an answer."""


def request(method: str) -> bytes:
    """Return the beginning of a connection and the head of a call."""
    return PREFACE + headers(
        *((":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", method)),
        *(("te", "trailers"), ("content-type", "application/grpc")),
    )


# -- what may arrive

TEXTS = st.sampled_from(
    (
        *("a", "a.io/x", "devwatch.io", "home", "", "\x1b[31m", "\r\nerror: all is lost", "\u2028", "\x00", "\u202e"),
        *("../../etc/passwd", "%0a%1b", '"}]}', "x" * 3000, "\N{PILE OF POO}", "eyJhbGciOiJSUzI1NiJ9.x"),
    )
) | st.text(max_size=6)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


_NUMBERS = st.sampled_from((1, 1, 1, 2, 2, 3, 4, 5, 0, 2**29 - 1))
_BROKEN = st.sampled_from(
    (b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x0c", b"\x0d\0\0", b"\xff" * 11, b"\x0a\1\xff")
)
_WIRE: st.SearchStrategy[bytes] = st.recursive(
    TEXTS.map(str.encode) | st.binary(max_size=6),
    lambda inner: st.lists(st.builds(_field, _NUMBERS, inner | st.integers(0, 2**64)) | _BROKEN, max_size=4).map(
        b"".join
    ),
    max_leaves=8,
)
_DEEP = st.integers(1, 300).map(lambda depth: _nest(depth, b""))


def _nest(depth: int, content: bytes) -> bytes:
    for _ in range(depth):
        content = _field(1, content)
    return content


def messages(good: st.SearchStrategy[Message]) -> st.SearchStrategy[bytes]:
    """Return encoded messages: good ones, those that lack their end or have a byte too much, and what only resembles them."""
    sound = good.map(lambda each: each.SerializeToString())
    cut = st.tuples(sound, st.integers(0, 40)).map(lambda pair: pair[0][: pair[1]])
    odd = st.tuples(sound, st.integers(0, 40), st.binary(min_size=1, max_size=2)).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
    )
    return sound | cut | odd | _WIRE | _DEEP


_NAMES = st.sampled_from(
    (
        *(":status", ":method", ":path", ":scheme", "content-type", "te", "grpc-status", "grpc-message", "x", "x-bin"),
        *("grpc-timeout", "content-length", "grpc-encoding", "X", "connection", "", "user-agent"),
    )
)
_VALUES = st.sampled_from(
    (
        *(
            b"200",
            b"103",
            b"502",
            b"POST",
            b"application/grpc",
            b"application/grpc+json",
            b"trailers",
            b"0",
            b"12",
            b"99",
        ),
        *(
            b"%0a%1b%5b",
            b"\xff",
            b"@@@",
            b"",
            b"1n",
            b"99999999H",
            b"-1",
            b"x" * 5000,
            b"/v1beta1.DevicePlugin/Allocate",
        ),
    )
) | st.binary(max_size=6)
_BLOCKS = st.lists(st.tuples(_NAMES, _VALUES), max_size=5).map(lambda fields: bytes(Encoder().encode(fields)))
_BODIES = st.sampled_from(
    (
        *(b"\0\0\0\0\0", b"\1\0\0\0\0", b"\0\0\0\0\x09ab", b"\0\xff\xff\xff\xffab", b"\0\0\0\0\2\xff\1", b""),
        *(
            b"\0\3\0\0\0\0",
            b"\0\4\0\0\0\0",
            b"\0\5\0\0\x40\0",
            b"\0\4\xff\xff\xff\xff",
            b"\0\0\0\0\0\0\0\2",
            b"\0\0\0\1",
        ),
        *(b"\0\0\0\2\x88", b"\x7f\xff\xff\xff"),
    )
)
_FRAMES = st.builds(
    frame,
    st.integers(0, 9) | st.sampled_from((0, 1, 1, 10, 12, 0xEE)),
    st.sampled_from((0, _END_STREAM, _END_HEADERS, _END_STREAM | _END_HEADERS, 0x8, 0x2C, 0xFF)),
    st.sampled_from((1, 1, 1, 0, 2, 3, 2**31 - 1)),
    _BLOCKS | _BODIES | st.binary(max_size=10),
)
FRAMES = st.lists(_FRAMES, max_size=5).map(b"".join) | st.binary(max_size=60)
"""Frames of either side, in an order of their own."""
