"""A server that these tests share with tests/server."""

from tests.server.conftest import _session_cache, address, client, tiny_folder

__all__ = ["_session_cache", "address", "client", "tiny_folder"]
