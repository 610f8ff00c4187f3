"""Start a server, ask it as a client of Cohere, Jina or TEI would, and stop it.

python examples/serve_and_ask.py ./bge-m3
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

DOCUMENTS = ["Paris is the capital of France.", "The giant panda is a bear that lives in China."]
READY_S = 60.0


def main(model: str) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "rankrt", "serve", model, "--port", address.rpartition(":")[2]]
    server = subprocess.Popen([*command, "--log-level", "warning"])
    try:
        wait_until_ready(server, address)
        cohere = ask(f"{address}/v2/rerank", {"model": "any", "query": "what is a panda?", "documents": DOCUMENTS})
        print("Cohere:", [(hit["index"], round(hit["relevance_score"], 4)) for hit in cohere["results"]])
        jina = ask(f"{address}/v1/rerank", {"query": "what is a panda?", "documents": DOCUMENTS, "top_n": 1})
        print("Jina:", jina["results"][0]["document"]["text"])
        tei = ask(f"{address}/tei/rerank", {"query": "what is a panda?", "texts": DOCUMENTS})
        print("TEI:", [(hit["index"], round(hit["score"], 4)) for hit in tei])
    finally:
        server.terminate()  # requests that are being answered are finished first
        server.wait(30)


def ask(url: str, body: dict[str, Any]) -> Any:
    """Send JSON and return the answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def wait_until_ready(server: subprocess.Popen[bytes], address: str) -> None:
    """Wait until the model is loaded."""
    limit = time.monotonic() + READY_S
    while server.poll() is None and time.monotonic() < limit:
        try:
            urllib.request.urlopen(f"{address}/ready", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    sys.exit("the server did not become ready")


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main(*sys.argv[1:])
