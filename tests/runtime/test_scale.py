"""What a score is: its kind, thresholds on it, and probabilities by an artifact's calibration."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import ArtifactError, InputError, Reranker
from rankrt.artifact.calibration import CALIBRATION, CALIBRATION_VERSION, Isotonic
from rankrt.artifact.manifest import Artifact
from rankrt.cli.main import main
from tests.support import calibrate, tiny_artifact


@pytest.fixture
def calibrated(artifact: Artifact) -> Iterator[Reranker]:
    calibrate(artifact)
    with Reranker.load(artifact.folder) as loaded:
        yield loaded


def test_every_hit_says_what_its_score_is(calibrated: Reranker):
    kinds: dict[str, Any] = {"logit": {}, "sigmoid": {"normalize": True}, "probability": {"calibrated": True}}
    for kind, options in kinds.items():
        ranking = calibrated.rank("zero", ["one", "three"], **options)
        assert (ranking.score_kind, {hit.score_kind for hit in ranking}) == (kind, {kind})


def test_a_calibration_gives_probabilities_in_the_order_of_the_logits(calibrated: Reranker):
    expected = [1 / (1 + np.exp(-2.0)), 0.5, 1 / (1 + np.exp(2.0))]
    hits = calibrated.rank("zero", ["two", "three", "four"], calibrated=True)
    assert [hit.index for hit in hits] == [2, 1, 0]
    assert [hit.score for hit in hits] == pytest.approx(expected, abs=1e-7)  # of float32
    pairs = [("zero", "four"), ("zero", "three"), ("zero", "two")]
    assert calibrated.score(pairs, calibrated=True).tolist() == [hit.score for hit in hits]


def test_steps_are_joined_by_lines_and_end_flat(artifact: Artifact):
    calibrate(artifact, Isotonic(logits=(1.0, 3.0), knots=(0.25, 0.75)))
    with Reranker.load(artifact.folder) as reranker:
        words = ["zero", "one", "two", "three", "four"]
        scores = reranker.score([("zero", word) for word in words], calibrated=True)
    assert scores.tolist() == [0.25, 0.25, 0.5, 0.75, 0.75]


def test_logits_stay_as_they_are_beside_a_calibration(calibrated: Reranker):
    assert calibrated.score([("one", "two")]).tolist() == [3.0]


def test_a_threshold_keeps_what_reaches_it_before_and_after_top_n(reranker: Reranker):
    documents = ["one", "three", "two", "four"]
    assert [hit.document for hit in reranker.rank("zero", documents, score_threshold=2)] == ["four", "three", "two"]
    assert len(reranker.rank("zero", documents, score_threshold=2, top_n=1)) == 1
    nothing = reranker.rank("zero", documents, score_threshold=9)
    assert (len(nothing), nothing.n_documents) == (0, 4)


def test_a_threshold_is_compared_in_the_precision_of_a_score(reranker: Reranker):
    """The sigmoid of 1 as float32 is above the float64 next to it; 0.73105858 is what people read."""
    (score,) = reranker.score([("zero", "one")], normalize=True)
    for threshold in (float(score), float(str(score))):
        assert len(reranker.rank("zero", ["one"], normalize=True, score_threshold=threshold)) == 1


def test_a_threshold_holds_for_refined_rankings(tmp_path: Path):
    artifact = tiny_artifact(tmp_path / "two", precisions=("fp32", "int8"))
    with Reranker.load(artifact.folder, precision="int8") as reranker:
        hits = reranker.rank("zero", ["one", "three", "two"], top_n=3, refine="fp32", score_threshold=1.5)
    assert [hit.document for hit in hits] == ["three", "two"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": True, "score_threshold": 3.0}, "score_threshold=3 is not between 0 and 1.*sigmoids of logits"),
        ({"calibrated": True, "score_threshold": -1}, "score_threshold=-1 is not between 0 and 1.*probabilities"),
        ({"score_threshold": "high"}, "score_threshold='high', expected a finite number"),
        ({"score_threshold": float("nan")}, "score_threshold=nan, expected a finite number"),
        ({"score_threshold": True}, "score_threshold=True, expected a finite number"),
        ({"normalize": True, "calibrated": True}, "normalize and calibrated both say"),
        ({"calibrated": 1}, "calibrated=1, expected True or False"),
    ],
)
def test_what_no_score_could_be_compared_with_is_refused(calibrated: Reranker, options, message: str):
    with pytest.raises(InputError, match=message):
        calibrated.rank("one", ["two"], **options)


def test_probabilities_need_a_calibration(reranker: Reranker):
    with pytest.raises(InputError, match=r"tiny has none.*rankrt calibrate ARTIFACT --data labelled.jsonl"):
        reranker.rank("one", ["two"], calibrated=True)


def test_a_calibration_of_another_layer_is_refused(artifact: Artifact):
    calibrate(artifact, cutoff_layer=8)
    with Reranker.load(artifact.folder) as reranker, pytest.raises(InputError, match="after layer 8, where it was"):
        reranker.score([("one", "two")], calibrated=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"artifact": "f" * 64}, "was fitted to the artifact ffffffffffffffff"),
        ({"format_version": CALIBRATION_VERSION + 1}, "upgrade rankrt"),
        ({"map": {"method": "platt", "slope": -1.0, "intercept": 0.0}}, "finite number above 0"),
        ({"map": {"method": "isotonic", "logits": [1, 1], "knots": [0, 1]}}, "`logits` rise"),
        ({"map": {"method": "isotonic", "logits": [0, 1], "knots": [1, 0]}}, "do not fall"),
        ({"extra": 1}, "is not a calibration"),
    ],
)
def test_a_damaged_calibration_is_not_loaded(artifact: Artifact, change, message: str):
    calibrate(artifact)
    path = artifact.folder / CALIBRATION
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=message):
        Reranker.load(artifact.folder)


def test_a_calibration_changes_neither_the_identity_nor_what_is_loaded(artifact: Artifact):
    assert calibrate(artifact).identity == artifact.identity


def test_the_command_line_takes_thresholds_and_probabilities(artifact: Artifact, tmp_path: Path, capsys):
    calibrate(artifact)
    (tmp_path / "documents.txt").write_text("two\nfour\n")
    command = ["rerank", str(artifact.folder), "--query", "zero", "--documents", str(tmp_path / "documents.txt")]
    assert main([*command, "--calibrated", "--score-threshold", "0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["score_kind"], [hit["document"] for hit in found["results"]]) == ("probability", ["four"])
    assert main([*command, "--normalize", "--score-threshold", "3"]) == 1
    assert "--score-threshold 3 is not between 0 and 1" in capsys.readouterr().err
