"""The end of a server: it stops listening, answers requests until the drain ends, and refuses the rest.

uvicorn alone cancels the rest. Then clients get a bare 500 or a broken connection, and the log gets tracebacks.
"""

import asyncio
import math
import socket

import uvicorn

from rankrt.server.service import Service

# Time to write refusals. A client that has not read its answer by then will not read it.
_LAST_WORDS_S = 1.0
# Then uvicorn cancels the requests that it still has. There should be none.
_CANCEL_S = 5.0


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which refuses its last requests in words that a client can read."""

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
