"""From bytes to a request: checks size, time, JSON and shape."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect

from rankrt.server.failures import Failure
from rankrt.server.limits import Body

T = TypeVar("T")
# The bytes and seconds for which a refused body is still read. Otherwise a client that is sending would see a reset
# connection and not the reason.
_DISCARD_BYTES = 128 << 20
_DISCARD_S = 5.0
_JSON = ("application/json", "text/json")


def check_headers(headers: Mapping[str, str], body: Body) -> None:
    """Raise a Failure for a body that is not JSON, or whose header says that it is too large."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in _JSON and not media_type.endswith("+json"):
        raise Failure("media_type", f"the body is {media_type or 'of no type'}; send content-type: application/json")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit():
        body.check(int(length[:20]))


async def read(chunks: AsyncIterator[bytes], body: Body, seconds: float) -> bytes:
    """Return the whole body. Raises a Failure if it is too large or comes too slowly."""
    parts = []
    try:
        async with asyncio.timeout(seconds):
            async for chunk in chunks:
                body.add(len(chunk))
                parts.append(chunk)
    except TimeoutError:
        raise Failure("body_too_slow", f"the body was not complete within {seconds:.0f} s") from None
    return b"".join(parts)


async def discard(chunks: AsyncIterator[bytes], headers: Mapping[str, str]) -> None:
    """Read and drop the rest of a refused body, within bounds. A body that was read to its end has none."""
    if headers.get("expect", "").lower() == "100-continue":
        return  # it asks before it sends
    n_left = _DISCARD_BYTES
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_DISCARD_S):
            async for chunk in chunks:
                n_left -= len(chunk)
                if n_left <= 0:
                    return


def n_values(content: bytes) -> int:
    """Return about how many strings, lists and objects a body has. Brackets in texts count, too.

    A quote that opens a string never has a backslash before it. So a body has at most twice the returned number, and so
    many only if each string ends with a backslash.
    """
    n_quotes = content.count(b'"') - content.count(b'\\"')
    return (n_quotes + 1) // 2 + content.count(b"{") + content.count(b"[")


def decode(content: bytes, shape: type[T]) -> T:
    """Decode JSON into a Struct. Raises a Failure that names the place and none of the content."""
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.ValidationError as error:
        raise Failure("invalid", f"{error}") from None
    except msgspec.DecodeError as error:
        raise Failure("syntax", f"the body is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise Failure("syntax", f"the body is not UTF-8: byte {error.start}, {error.reason}") from None
    except RecursionError:
        raise Failure("syntax", "the body is nested too deeply") from None
