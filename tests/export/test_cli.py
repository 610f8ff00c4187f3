"""The options of `rankrt export`: in any order, and refused where they would change nothing."""

from pathlib import Path

import pytest

from rankrt.artifact.manifest import Artifact, open_artifact
from rankrt.cli.main import main
from tests.export.conftest import Make

pytestmark = pytest.mark.export
Output = pytest.CaptureFixture[str]


@pytest.mark.parametrize("written", ["--precision fp32 w8 MODEL OUT", "--precision=fp32,w8 MODEL --target cpu OUT"])
def test_options_may_stand_before_the_model(make_checkpoint: Make, tmp_path: Path, written: str):
    places = {"MODEL": str(make_checkpoint()), "OUT": str(tmp_path / "out")}
    options = ["--no-verify", *(places.get(word, word) for word in written.split())]
    assert main(["export", *options]) == 0
    assert {variant.precision for variant in open_artifact(tmp_path / "out").manifest.variants} == {"fp32", "w8"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--calibration texts.jsonl", "--calibration is for int8 and fp8, but --precision is fp32"),
        ("--calibration texts.jsonl --precision fp16 w8", "but --precision is fp16, w8"),
        ("--revision main", "--revision main is for a Hub repository, but FOLDER is a folder"),
        ("--max-drift 1", "--max-drift is for precisions below fp32"),
        ("--min-tau 0.9", "--min-tau is for precisions below fp32"),
        ("--precision fp16 --no-verify --min-tau 0.9", "--min-tau has no effect with --no-verify"),
        ("--no-verify --verify-with texts.jsonl", "--verify-with has no effect with --no-verify"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(tmp_path: Path, capsys: Output, options: str, message: str):
    assert main(["export", str(tmp_path), str(tmp_path / "out"), *options.split()]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("rankrt: error: ") and message.replace("FOLDER", str(tmp_path)) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max-drift -1", "--max-drift: -1.0 is less than 0"),
        ("--max-drift nan", "--max-drift: 'nan' is not a finite number"),
        ("--min-tau 2", "--min-tau: 2.0 is more than 1"),
        ("--precision fp32,fp61", "'fp61' is not one of fp32, fp16, bf16, w8, int8, fp8, int4; did you mean fp16?"),
        ("--precision fp32 fp61", "unexpected argument 'fp61'; did you mean fp16?"),
        ("--target gpu", "--target: 'gpu' is not one of cpu, cuda, tensorrt"),
        ("--cutoff-layers 8 x", "unexpected argument 'x'"),
        ("--cutoff-layers 0", "--cutoff-layers: 0 is less than 1"),
        ("--prompt qwen3-rerank", "did you mean qwen3-reranker?"),
    ],
)
def test_a_wrong_value_is_wrong_usage(capsys: Output, options: str, message: str):
    assert main(["export", "MODEL", "OUT", *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_an_artifact_is_not_exported_again(artifact: Artifact, tmp_path: Path, capsys: Output):
    assert main(["export", str(artifact.folder), str(tmp_path / "out")]) == 1
    assert f"{artifact.folder} is an artifact already: it has a rankrt.json" in capsys.readouterr().err
