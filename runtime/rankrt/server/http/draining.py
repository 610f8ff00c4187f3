"""The end of a server: it stops listening, answers what was asked as long as it may, and refuses what is left.

uvicorn alone cancels what is left: clients get a 500 that says nothing or a connection that breaks, and the log gets
tracebacks.
"""

import asyncio
import math
import socket

import uvicorn

from rankrt.server.service import Service

# For refusals to be written. A client that has not read its answer by then will not.
_LAST_WORDS_S = 1.0
# When uvicorn cancels what it still has, which should be nothing.
_CANCEL_S = 5.0


class DrainingServer(uvicorn.Server):
    """uvicorn's server, with an end that every client understands."""

    def __init__(self, config: uvicorn.Config, service: Service, *, drain_s: float) -> None:
        config.timeout_graceful_shutdown = math.ceil(drain_s + _LAST_WORDS_S + _CANCEL_S)
        super().__init__(config)
        self._service = service
        self._drain_s = drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and return when every request is answered or refused."""
        self._service.is_stopping = True
        ending = asyncio.create_task(self._end_rest())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_rest(self) -> None:
        await asyncio.sleep(self._drain_s)
        await self._service.refuse_rest()
        await asyncio.sleep(_LAST_WORDS_S)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
