"""The probes of rankrt's memory report what they measured."""

import json
import subprocess
import sys

from rankrt.artifact.manifest import Artifact


def test_the_memory_probe_reports_what_it_measured(artifact: Artifact):
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.studies.memory", "--artifact", str(artifact.folder), "--probe", "reranker"],
        check=True,
        capture_output=True,
        text=True,
    )
    answer = json.loads(process.stdout)
    assert answer["load_s"] > 0
    assert answer["scored_mb"] >= answer["loaded_mb"] > 1
