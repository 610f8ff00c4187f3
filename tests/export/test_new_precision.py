"""A precision that rankrt does not have is added as a row and a file, and nothing else knows of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rankrt.artifact.precisions import PRECISIONS, TARGETS, Precision, Target, variant_keys
from rankrt_export.precision.methods import CalibratedMethod, method_of
from tests.export.conftest import Make

pytestmark = pytest.mark.export

ROOT = Path(__file__).resolve().parents[2]
TABLE, FOLDER = Path("runtime/rankrt/artifact/precisions.py"), Path("export/rankrt_export/precision")
ROW = """
    "w16": PrecisionRow(
        help="weights in brain floats",
        targets=("cpu",),
        rank_on_cpu=1,
        rank_on_gpu=7,
        max_difference=4.0,
        min_tau=0.5,
        bytes_per_weight=2,
        bytes_in_memory=4,
        prepared_growth=2.7,
    ),
"""
FILE = '''
"""Weights stored in brain floats and computed in single precision."""

import ml_dtypes

from rankrt_export.graph.graph import FLOAT
from rankrt_export.precision.float32 import gemm
from rankrt_export.precision.methods import FixedMethod


class BFloat16:
    states = FLOAT

    def stored(self, graph, weight):
        shape, blocks = graph.weights.shape(weight), lambda: graph.weights.blocks(weight)
        return graph.external("weights.w16.data", f"{weight}.w16", ml_dtypes.bfloat16, shape, blocks)

    def linear(self, graph, x, weight, bias):
        return gemm(graph, x, graph.op("Cast", self.stored(graph, weight), to=FLOAT), bias)

    def lookup(self, graph, ids, table):
        return graph.op("Cast", graph.op("Gather", self.stored(graph, table), ids), to=FLOAT)


METHODS = (FixedMethod(target="cpu", precision="w16", arithmetic=BFloat16()),)
'''
# What a user does with it: export and verify, look, check, load without naming it, and score.
USE = """
import json, sys
from rankrt import Reranker
from rankrt.cli.main import main

checkpoint, artifact = sys.argv[1:]
assert main(["export", checkpoint, artifact, "--precision", "fp32,w16"]) == 0
assert main(["doctor", artifact]) == 0
pairs = [("who?", "me"), ("where?", "here, and there"), ("when?", "now")]
with Reranker.load(artifact) as chosen, Reranker.load(artifact, precision="fp32") as exact:
    scores = [reranker.score(pairs).tolist() for reranker in (chosen, exact)]
    print(json.dumps([chosen.variant.name, chosen.variant.verification.max_difference, scores]))
"""


def test_a_row_and_a_file_are_all_that_a_new_precision_needs(make_checkpoint: Make, tmp_path: Path):
    for package in ("runtime/rankrt", "export/rankrt_export"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    table = (tmp_path / TABLE).read_text()
    table = table.replace('Precision: TypeAlias = Literal["fp32",', 'Precision: TypeAlias = Literal["fp32", "w16",')
    (tmp_path / TABLE).write_text(table.replace('    "w8": PrecisionRow(', f'{ROW}    "w8": PrecisionRow('))
    (tmp_path / FOLDER / "bfloat16.py").write_text(FILE)
    folders = [str(tmp_path / "runtime"), str(tmp_path / "export"), str(ROOT)]
    process = subprocess.run(
        [sys.executable, "-c", USE, str(make_checkpoint()), str(tmp_path / "artifact")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "RANKRT_CACHE": str(tmp_path / "cache")},
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    name, max_difference, (scores, exact) = json.loads(process.stdout.splitlines()[-1])
    assert name == "cpu-w16"
    assert 0 < max_difference < 4
    assert scores != exact
    assert scores == pytest.approx(exact, abs=4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_file_writes_what_the_row_says_and_nothing_else(target: Target, precision: Precision):
    row, (key, *_) = PRECISIONS[precision], variant_keys(target, precision)
    if target not in row.targets:
        with pytest.raises(KeyError):
            method_of(key)
        return
    method = method_of(key)
    assert (method.target, method.precision) == (target, precision)
    assert isinstance(method, CalibratedMethod) == row.is_calibrated
