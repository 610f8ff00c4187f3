"""`rankrt export --push` against a hub on this machine that speaks as much of the hub's API as a commit needs."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from rankrt.artifact.manifest import Artifact
from rankrt_export.errors import OptionsError, OutputError
from rankrt_export.push import artifact_card, check_login, push

pytestmark = [
    pytest.mark.export,
    # In 0.36, which transformers 4.57 needs, what a commit answers may only be an address of the public hub.
    pytest.mark.skipif(huggingface_hub.__version__.startswith("0."), reason="needs huggingface_hub 1 or newer"),
]


class Hub(ThreadingHTTPServer):
    """A hub with one user; `files` is what was committed, `takes_commits` whether it may be."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.repositories: list[str] = []
        self.takes_commits = True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(200, {"type": "user", "name": "me", "auth": {}})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/api/repos/create":
            self.server.repositories.append(json.loads(body)["name"])
            self._answer(200, {"url": f"{self.server.address}/me/model", "name": "me/model"})
        elif self.path.endswith("/preupload/main"):
            named = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in named]
            self._answer(200, {"files": files})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif not self.path.endswith("/commit/main"):
            self._answer(404, {"error": f"{self.path} is not known here"})
        elif not self.server.takes_commits:
            self._answer(403, {"error": "no rights to write here"})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(200, {"commitUrl": f"{self.server.address}/me/model/commit/1", "commitOid": "1"})

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, status: int, content: Any) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_all_files_and_the_card_are_one_commit(artifact: Artifact, hub: Hub):
    check_login("me/model", hub.address)
    address = push(artifact.folder, "me/model", artifact_card(artifact), hub.address)
    assert address.endswith("/me/model/commit/1")
    assert hub.repositories == ["model"]
    expected = {path.name: path.read_bytes() for path in artifact.folder.iterdir()}
    assert {name: content for name, content in hub.files.items() if name != "README.md"} == expected
    card = hub.files["README.md"].decode()
    assert "library_name: rankrt" in card and "tiny: SumOfPoints" in card


def test_files_in_folders_keep_their_paths(tmp_path: Path, hub: Hub):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"graph")
    (tmp_path / "README.md").write_text("# A card of its own")
    push(tmp_path, "me/model", endpoint=hub.address)
    assert hub.files == {"onnx/model.onnx": b"graph", "README.md": b"# A card of its own"}


def test_a_refusal_says_that_the_export_is_complete(artifact: Artifact, hub: Hub):
    hub.takes_commits = False
    with pytest.raises(OutputError, match=r"tiny is complete, but could not be pushed: 403"):
        push(artifact.folder, "me/model", artifact_card(artifact), hub.address)


def test_without_a_login_nothing_is_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(OptionsError, match="--push me/model needs a login: "):
        check_login("me/model", "http://127.0.0.1:9")
