"""The runtime runs without torch, transformers, onnx and the export half, and does not even reach for them."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import rankrt
from rankrt.artifact.manifest import Artifact

BANNED = ["torch", "transformers", "optimum", "onnx", "onnx_ir", "onnxscript", "safetensors", "scipy"]
BANNED += ["rankrt_export", "rankrt_finetune"]

# It records instead of raising: an ImportError would be swallowed by whoever tries an import "just in case".
PROBE = """
    import importlib, json, pkgutil, sys

    class Recorder:
        asked = set()

        def find_spec(self, name, path=None, target=None):
            self.asked.add(name.partition(".")[0])

    sys.meta_path.insert(0, Recorder())
    import rankrt

    OF_THE_EXTRA = {"starlette", "uvicorn", "prometheus_client"}
    for module in pkgutil.walk_packages(rankrt.__path__, "rankrt."):
        try:
            importlib.import_module(module.name)
        except rankrt.MissingExtra:
            if not module.name.startswith(("rankrt.integrations.", "rankrt.server.ray_serve")):
                raise
        except ModuleNotFoundError as error:
            if not module.name.startswith("rankrt.server.") or error.name not in OF_THE_EXTRA:
                raise

    folder, cache = sys.argv[1:]
    import os

    os.environ["RANKRT_CACHE"] = cache
    reranker = rankrt.Reranker.load(folder)
    score = reranker.rank("one", ["two"])[0].score
    from rankrt.cli.main import main

    main(["doctor", folder])
    print(json.dumps({"score": score, "asked": sorted(Recorder.asked)}))
"""


def test_scoring_and_every_module_of_the_runtime_stay_on_their_side(artifact: Artifact, tmp_path: Path):
    process = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(PROBE), str(artifact.folder), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(process.stdout.splitlines()[-1])
    assert answer["score"] == 3.0
    assert set(answer["asked"]) & set(BANNED) == set()
    assert {"numpy", "tokenizers", "onnxruntime"} <= set(answer["asked"])


def test_what_is_public_is_in_all_and_what_is_in_all_is_there():
    found = {name: getattr(rankrt, name) for name in dir(rankrt) if name[0] != "_"}
    public = {name for name, value in found.items() if getattr(value, "__module__", "").startswith("rankrt.")}
    assert public | {"__version__"} == set(rankrt.__all__)
    assert rankrt.__all__ == sorted(rankrt.__all__)
