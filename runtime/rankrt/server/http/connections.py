"""Connections: how many may be open, and how long one may stay without a request.

uvicorn counts connections when their request is complete, so silent ones fill the process's table of files, and asyncio
then logs thousands of lines a second. Here a connection counts from accept() to close(), TLS handshakes included:

    up to max_connections        served
    SPARE_CONNECTIONS more       answered once: health and readiness as always, everything else with 503
    beyond                       refused with a 503 that does not wait for a request, and closed when that was read

A connection on which no request is worked on always has a timer: for the header, or for the next request. A client that
does not read its answer is disconnected too. Bodies have their time-out in `bodies`.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rankrt.errors import InputError
from rankrt.server.limits import Limits

if sys.platform != "win32":
    import resource

# Connections beyond the limit that are still read, so that a probe of a full server is answered.
SPARE_CONNECTIONS = 32
# They have to be free again soon: a probe sends its request at once.
_SPARE_HEADER_S = 1.0
# Refused connections that are still read, and for how long: one that is closed while its client sends is reset, and
# the reset overtakes the answer. Each has a number of a file that is kept for it.
_LINGERING, _LINGER_S, _DISCARDED_BYTES = 32, 2.0, 1 << 16
# Files that are open beside connections: 60 were counted with one model and one worker, and those that are kept.
_OTHER_FILES = 128
# Where asyncio's accept loop would log, and try again at once.
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Connections that the kernel keeps until they are accepted.
_WAITING = 2048
_CLOSE = (b"connection", b"close")
# The key of a request's state: its connection is one of the spare ones.
IS_SPARE = "is_spare_connection"

_logger = logging.getLogger("rankrt.server")


def files_for(n_connections: int, n_threads: int) -> int:
    """Return how many open files so many connections need, with all else that the server opens."""
    return n_connections + SPARE_CONNECTIONS + _OTHER_FILES + 4 * n_threads


def allow_connections(asked: int | None, n_threads: int) -> int:
    """Raise this process's limit of open files as far as needed, and return how many connections fit.

    Without `asked`, the default is lowered to what fits. Raises InputError if what is asked does not.
    """
    wanted = asked or Limits().max_connections
    needed = files_for(wanted, n_threads)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    may_have = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
    if may_have > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (may_have, hard))
    fitting = wanted - (needed - max(soft, may_have))
    if fitting >= wanted:
        return wanted
    if asked is not None or fitting < 1:
        raise InputError(
            f"--max-connections {wanted} needs {needed} open files, and this process may have {hard};"
            f" raise the limit (ulimit -Hn, LimitNOFILE), or ask for --max-connections {max(1, fitting)}"
        )
    _logger.warning("at most %d connections: this process may have %d open files", fitting, hard)
    return fitting


def listen(host: str, port: int, gate: "Gate") -> list["Listener"]:
    """Listen on each address of a host. Raises InputError if one cannot be had."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} is not an address or a name that this host knows: {error}") from None
    listeners: list[Listener] = []
    for family, _, _, _, address in dict.fromkeys(found):
        listener = Listener(family, gate)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port, *address[2:]))
            port = listener.getsockname()[1]  # the next address has the same one, if the first was asked for any by 0
            listener.listen(_WAITING)  # clients that connect from now on wait for the start, and are not refused
        except OSError as error:
            for opened in (listener, *listeners):
                opened.close()
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise InputError(f"--host {host} --port {port} cannot be listened on: {reason}") from None
        listeners.append(listener)
    return listeners


class Gate:
    """The count of a server's connections.

    n_open    from accept() to close()
    n_served  those of them that may send any request
    greets    whether the server may speak first, which TLS does not allow
    """

    def __init__(self, max_connections: int, *, greets: bool) -> None:
        self.max_connections = max_connections
        self.n_open = 0
        self.n_served = 0
        self.n_refused = 0
        self._greets = greets
        self._kept_files: list[int] = []
        self._lingering: dict[socket.socket, asyncio.TimerHandle] = {}
        self._keep_files()

    @property
    def is_full(self) -> bool:
        """Whether the next connection is a spare one."""
        return self.n_served >= self.max_connections

    @property
    def is_shut(self) -> bool:
        """Whether the next connection is closed at once."""
        return self.n_open >= self.max_connections + SPARE_CONNECTIONS

    def refuse(self, accept: Callable[[], socket.socket]) -> None:
        """Accept a connection in place of a file that is kept, say why it is not served, and let it go.

        Its event loop reads what the client still sends, until the client closes it or for 2 s.
        """
        if len(self._lingering) >= _LINGERING:
            self._let_go(next(iter(self._lingering)))
        if self._kept_files:
            os.close(self._kept_files.pop())
        with contextlib.suppress(OSError):
            connection = accept()
            self.n_refused += 1
            self._linger(connection)
        self._keep_files()

    def close(self) -> None:
        """Close the refused connections that are still read, and the files that are kept."""
        for connection in self._lingering:
            connection.close()
        for file in self._kept_files:
            os.close(file)
        self._lingering, self._kept_files = {}, []

    def _linger(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._lingering[connection] = loop.call_later(_LINGER_S, self._let_go, connection)
        connection.setblocking(False)
        loop.add_reader(connection, self._discard, connection)
        try:
            if self._greets:
                connection.send(_REFUSAL)
            connection.shutdown(socket.SHUT_WR)
        except OSError:  # the client has left
            self._let_go(connection)

    def _discard(self, connection: socket.socket) -> None:
        try:
            is_open = bool(connection.recv(_DISCARDED_BYTES))
        except BlockingIOError:
            return
        except OSError:
            is_open = False
        if not is_open:
            self._let_go(connection)

    def _let_go(self, connection: socket.socket) -> None:
        self._lingering.pop(connection).cancel()
        asyncio.get_running_loop().remove_reader(connection)
        connection.close()
        self._keep_files()

    def _keep_files(self) -> None:
        """Keep a number of a file for each connection that may be refused, as far as there are any."""
        with contextlib.suppress(OSError):
            while len(self._kept_files) + len(self._lingering) < _LINGERING:
                self._kept_files.append(os.open(os.devnull, os.O_RDONLY))


_REFUSAL_BODY = b'{"error": "too many connections; try again", "message": "too many connections; try again"}'
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_REFUSAL_BODY), _REFUSAL_BODY)
)


class Listener(socket.socket):
    """A listening socket whose connections are counted by a gate."""

    def __init__(self, family: int, gate: Gate) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._gate = gate

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. Raises BlockingIOError when one was refused; asyncio's loop takes the next then."""
        try:
            accepted, address = super().accept()
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self._gate.refuse(lambda: super(Listener, self).accept()[0])
            raise BlockingIOError(errno.EAGAIN, "no file was left for a connection") from None
        if self._gate.is_shut:
            self._gate.refuse(lambda: accepted)
            raise BlockingIOError(errno.EAGAIN, "a connection too many was closed")
        return _Counted(accepted, self._gate), address


class _Counted(socket.socket):
    """An accepted connection: it counts until it is closed."""

    def __init__(self, accepted: socket.socket, gate: Gate) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self._gate: Gate | None = gate
        gate.n_open += 1

    def close(self) -> None:
        """Close it, and count it no more."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.n_open -= 1
        super().close()


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 with time-outs, a limit of headers that holds, and a gate."""

    def __init__(self, *, gate: Gate, limits: Limits, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._app: Any = self.app
        self.app = self._serve
        self._gate, self._limits = gate, limits
        self._is_spare = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a header."""
        super().connection_made(transport)
        self._is_spare = self._gate.is_full
        self._gate.n_served += not self._is_spare
        self.app_state = {**self.app_state, IS_SPARE: self._is_spare}
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came; a byte does not give a header more time."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers, and make room for another."""
        self._gate.n_served -= not self._is_spare
        self._header_timer = _stopped(self._header_timer)
        self._write_timer = _stopped(self._write_timer)
        super().connection_lost(exc)
        # uvicorn's timer still runs after a reset, and would keep all of this for 75 s.
        self.timeout_keep_alive_task = _stopped(self.timeout_keep_alive_task)
        self.app = self._app  # a method of this one would keep it until garbage is collected

    def pause_writing(self) -> None:
        """Wait for a client that does not read, and no longer than for one that does not write."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.body_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Write again: the client reads."""
        self._write_timer = _stopped(self._write_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or has headers without end."""
        unread, _ = self.conn.trailing_data
        if len(unread) > self._limits.max_header_bytes:
            self._answer_now(431, f"the headers have more than {self._limits.max_header_bytes} bytes")
        else:
            self._answer_now(400, msg)

    def _should_upgrade(self) -> bool:
        return False  # and no advice to install a library for WebSockets

    def _watch(self) -> None:
        """Have a timer for the header exactly while no request is worked on and none was answered just now."""
        is_working = self.cycle is not None and not self.cycle.response_complete
        if is_working or self.timeout_keep_alive_task is not None or self.transport.is_closing():
            self._header_timer = _stopped(self._header_timer)
        elif self._header_timer is None:
            seconds = _SPARE_HEADER_S if self._is_spare else self._limits.header_timeout_s
            self._header_timer = self.loop.call_later(seconds, self._give_up_header)

    def _give_up_header(self) -> None:
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._answer_now(408, "the header of the request did not come in time")
        else:
            self.transport.close()

    def _answer_now(self, status: int, message: str) -> None:
        """Answer from here, without a request, and close."""
        content = message.encode()
        headers = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(content)))]
        events = [
            h11.Response(status_code=status, headers=[*headers, ("connection", "close")]),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ]
        with contextlib.suppress(h11.LocalProtocolError):
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; the end of the drain closes a connection with one line in the log and no traceback."""
        if _header_bytes(scope) > self._limits.max_header_bytes:
            await _refuse(send, 431, f"the headers have more than {self._limits.max_header_bytes} bytes")
            return
        try:
            await self._app(scope, receive, _closing(send) if self._is_spare else send)
        except asyncio.CancelledError:
            _logger.warning("a request was still worked on when the drain ended; its connection is closed")
            if not self.cycle.response_started:
                await _refuse(send, 503, "the server is going down")
            self.transport.close()


def _stopped(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer, and return what stands for none."""
    if timer is not None:
        timer.cancel()
    return None


def _header_bytes(scope: Scope) -> int:
    """Count the bytes of a request's first line and headers. h11 bounds those only that come in several reads."""
    line = len(scope["raw_path"]) + len(scope["query_string"])
    return line + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _closing(send: Send) -> Send:
    """Say in each answer that the connection will be closed."""

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = [header for header in message.get("headers", []) if header[0].lower() != b"connection"]
            message = {**message, "headers": [*others, _CLOSE]}
        await send(message)

    return send_and_close


async def _refuse(send: Send, status: int, message: str) -> None:
    content = message.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(content)), _CLOSE]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


class Loop(asyncio.SelectorEventLoop):
    """asyncio's loop, with a time-out for TLS handshakes that uvicorn has no option for (asyncio's own is 60 s)."""

    handshake_timeout_s = 10.0

    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:
        """Create a server; see asyncio."""
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = self.handshake_timeout_s
        return await super().create_server(*arguments, **options)
