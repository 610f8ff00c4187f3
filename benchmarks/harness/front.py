"""HAProxy with deploy/haproxy/haproxy.cfg before servers on this machine.

Only addresses and the choice of the backend are changed in the file, so that what is measured is what is recommended.
"""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from benchmarks.harness.served import free_port, get

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"


def has_haproxy() -> bool:
    """Tell whether HAProxy is installed, in a version that knows `balance hash`."""
    if shutil.which("haproxy") is None:
        return False
    said = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= (2, 6)


def configured(text: str, *, port: int, servers: Sequence[int], backend: str, commands: Path) -> str:
    """Return the configuration for a front at `port` before servers at these ports, which uses this backend.

    It takes commands at a socket.
    """
    listed = "".join(f"    server rankrt{i} 127.0.0.1:{server}\n" for i, server in enumerate(servers, 1))
    text = re.sub(r"( {4}server rankrt\d.*\n)+", listed, text)
    text = re.sub(r"# stats socket \S+", f"stats socket {commands}", text)
    text = re.sub(r"bind :8000", f"bind 127.0.0.1:{port}", text)
    return re.sub(r"default_backend \w+", f"default_backend {backend}", text)


class Front:
    """A process with HAProxy. It is ready when one of its servers is."""

    def __init__(self, folder: Path, servers: Sequence[int], backend: str) -> None:
        self.port = free_port()
        self._commands = folder / f"{self.port}.sock"
        text = configured(
            CONFIGURATION.read_text(), port=self.port, servers=servers, backend=backend, commands=self._commands
        )
        (folder / f"{self.port}.cfg").write_text(text)
        command = ["haproxy", "-db", "-f", str(folder / f"{self.port}.cfg")]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def command(self, text: str) -> str:
        """Give HAProxy a command, and return its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._commands))
            connection.sendall(f"{text}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def __enter__(self) -> Self:
        while b'"ready"' not in self._asked():
            if self.process.poll() is not None:
                raise RuntimeError("haproxy ended")
            time.sleep(0.05)
        return self

    def __exit__(self, *failure: object) -> None:
        self.process.terminate()
        self.process.wait()

    def _asked(self) -> bytes:
        with suppress(OSError):
            return get(self.port, "/ready")
        return b""
