"""From bytes to a request: no more than may be, no later than may be, and nothing but JSON of the right shape."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec

from rankrt.server.failures import Failure
from rankrt.server.limits import Body

T = TypeVar("T")
# What is read of a body that was refused before the connection is closed: a client that is still sending would see a
# reset connection and not the reason.
_DISCARD_BYTES = 128 << 20
_DISCARD_S = 5.0
_JSON = ("application/json", "text/json")


def check_headers(headers: Mapping[str, str], body: Body) -> None:
    """Raise a Failure for a body that is not JSON, or that says itself that it is too large."""
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
        raise Failure("body_too_slow", f"the body was not there within {seconds:.0f} s") from None
    return b"".join(parts)


async def discard(receive: Callable[[], Awaitable[Any]], headers: Mapping[str, str]) -> None:
    """Read what a client goes on sending after it was refused, within bounds, and keep nothing of it."""
    if headers.get("expect", "").lower() == "100-continue":
        return  # it asks before it sends
    n_left = _DISCARD_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while n_left > 0:
                message = await receive()
                if not message.get("more_body"):
                    return
                n_left -= len(message["body"])


def n_values(content: bytes) -> int:
    """Return about how many strings, lists and objects a body has: brackets in texts count, too.

    No quote that opens a string has a backslash before it. So the strings are at most twice the number returned, and
    that only if each ends with a backslash.
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
