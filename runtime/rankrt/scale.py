"""The scale that scores are told on: logits, their sigmoid, or probabilities by an artifact's calibration.

Knows numbers and thresholds; how a logit is computed is the scorer's business.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from rankrt.arrays import BoolArray, Float32Array
from rankrt.artifact.calibration import Calibration
from rankrt.artifact.manifest import Artifact
from rankrt.errors import InputError
from rankrt.options import check_flag, check_number
from rankrt.scoring import sigmoid

# What the model computes; that squeezed between 0 and 1; or the share of pairs with such a score that are relevant.
ScoreKind: TypeAlias = Literal["logit", "sigmoid", "probability"]

_BETWEEN_0_AND_1 = {"sigmoid": "sigmoids of logits", "probability": "probabilities"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What scores are told as. Every scale keeps the order of the logits. `calibration` is that of probabilities."""

    kind: ScoreKind
    calibration: Calibration | None = None

    @classmethod
    def of(
        cls, artifact: Artifact, cutoff_layer: int | None, *, normalize: bool = False, calibrated: bool = False
    ) -> "Scale":
        """Return the scale that two flags name, for the logits of an artifact after a layer.

        Raises InputError for both flags, and for `calibrated` where no calibration was fitted to these logits.
        """
        kind = kind_of(normalize=normalize, calibrated=calibrated)
        return cls(kind=kind, calibration=_calibration(artifact, cutoff_layer) if kind == "probability" else None)

    def scores(self, logits: Float32Array) -> Float32Array:
        """Return logits as scores of this scale."""
        if self.calibration is not None:
            return self.calibration.map.probabilities(logits)
        return sigmoid(logits) if self.kind == "sigmoid" else logits


def kind_of(*, normalize: bool, calibrated: bool) -> ScoreKind:
    """Return the kind of scores that two flags name. Raises InputError if they are not flags, or are both set."""
    check_flag("normalize", normalize)
    check_flag("calibrated", calibrated)
    if normalize and calibrated:
        raise InputError("normalize and calibrated both say what a score is; leave one of them out")
    return "probability" if calibrated else "sigmoid" if normalize else "logit"


def check_threshold(threshold: float | None, kind: ScoreKind) -> None:
    """Raise InputError for a threshold that is not a number, or that no score of this kind can be on both sides of."""
    check_number("score_threshold", threshold, none_is="all scores")
    if threshold is not None and kind != "logit" and not 0 <= threshold <= 1:
        raise InputError(
            f"score_threshold={threshold:g} is not between 0 and 1, but the scores asked for are"
            f" {_BETWEEN_0_AND_1[kind]}. Ask for logits to compare with them, or lower it"
        )


def reaches(scores: Float32Array, threshold: float | None) -> BoolArray:
    """Tell which scores are at least the threshold, by the precision of a score: 0.7 reaches 0.7."""
    if threshold is None:
        return np.ones(scores.shape, bool)
    return np.asarray(scores >= np.float32(threshold))


def _calibration(artifact: Artifact, cutoff_layer: int | None) -> Calibration:
    if (found := artifact.calibration) is None:
        raise InputError(
            f"calibrated needs a calibration, and {artifact.manifest.name} has none. Fit one to pairs with labels:"
            " rankrt calibrate ARTIFACT --data labelled.jsonl"
        )
    if found.cutoff_layer != cutoff_layer:
        fitted, asked = (
            "the last layer" if layer is None else f"layer {layer}" for layer in (found.cutoff_layer, cutoff_layer)
        )
        raise InputError(f"calibrated is for scores after {fitted}, where it was fitted, not after {asked}")
    return found
