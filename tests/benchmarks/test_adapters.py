"""The benchmark of the adapters: it measures those that are installed, and its table says what it found."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.studies.adapters import table
from rankrt.artifact.manifest import Artifact


def test_an_adapter_s_own_time_is_measured_beside_the_model_s(artifact: Artifact, tmp_path: Path):
    output = tmp_path / "adapters.json"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.studies.adapters",
            "--artifact",
            artifact.folder,
            "--rounds",
            "3",
            "-o",
            output,
        ],
        cwd=Path(__file__).resolve().parents[2],
        check=True,
        capture_output=True,
    )
    record = json.loads(output.read_text())
    assert record["n_documents"] == 10
    assert {"sentence-transformers", "arank"} <= record["adapters"].keys()
    for found in record["adapters"].values():
        assert 0 < found["own_us"] < 1e6
        assert found["share_percent"] > 0


def test_the_table_has_a_row_for_each_adapter():
    adapters = {"haystack": {"own_us": 41.2, "share_percent": 0.051}}
    assert table({"adapters": adapters}).rows == [["haystack", "41 us", "0.05 %"]]
