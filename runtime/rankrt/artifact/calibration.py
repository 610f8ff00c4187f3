"""An artifact's calibration: the map from its logits to probabilities, as plain numbers in a file beside the manifest.

`rankrt calibrate` fits it to labelled pairs and writes the file. It belongs to its user's data and not to the model. So
the manifest does not name it, and it changes neither the artifact's identity nor its logits.
"""

from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from rankrt.arrays import Float32Array
from rankrt.errors import ArtifactError
from rankrt.files.rights import unreadable

CALIBRATION = "calibration.json"
CALIBRATION_VERSION = 1


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the file: immutable, every field by name, unknown fields refused."""


class Platt(_Record, frozen=True, tag_field="method", tag="platt"):
    """A sigmoid of a line: 1 / (1 + exp(-(slope * logit + intercept))). The slope is above 0."""

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        """Refuse a map that would turn the order of scores around."""
        if not (0 < self.slope < np.inf and np.isfinite(self.intercept)):
            raise ValueError("`slope` is a finite number above 0 and `intercept` a finite number")

    def probabilities(self, logits: Float32Array) -> Float32Array:
        """Return the probability of each logit, computed in double precision."""
        line = self.slope * logits.astype(np.float64) + self.intercept
        with np.errstate(over="ignore"):  # exp of more than 709 is infinity, and the probability is 0
            found: Float32Array = (1.0 / (1.0 + np.exp(-line))).astype(np.float32)
        return found


class Isotonic(_Record, frozen=True, tag_field="method", tag="isotonic"):
    """Straight lines between knots. Before the first knot and after the last one, the probability stays the same."""

    logits: tuple[float, ...]
    knots: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse a map that would turn the order of scores around."""
        at, values = np.array(self.logits), np.array(self.knots)
        if len(at) != len(values) or len(at) < 2 or not np.isfinite(at).all() or not (np.diff(at) > 0).all():
            raise ValueError("`logits` and `knots` are two or more numbers each, and `logits` rise")
        if not ((values >= 0) & (values <= 1)).all() or (np.diff(values) < 0).any():
            raise ValueError("`knots` are probabilities that do not fall")

    def probabilities(self, logits: Float32Array) -> Float32Array:
        """Return the probability of each logit, computed in double precision."""
        found: Float32Array = np.interp(logits.astype(np.float64), self.logits, self.knots).astype(np.float32)
        return found


class FittedTo(_Record, frozen=True):
    """The labelled pairs that a map was fitted to, and the SHA-256 of their file."""

    sha256: str
    n_queries: int
    n_pairs: int
    n_relevant: int


class Calibration(_Record, frozen=True):
    """The content of calibration.json.

    artifact      the identity of the artifact whose logits were read
    variant       the variant that computed them
    cutoff_layer  the layer of a layerwise model after which they were read; None for the last
    error_before  the expected calibration error of the logits' sigmoid on these pairs
    error_after   that of the probabilities, on pairs that each map was not fitted to (cross-validation)
    """

    format_version: int
    artifact: str
    variant: str
    cutoff_layer: int | None
    map: Platt | Isotonic
    data: FittedTo
    error_before: float
    error_after: float

    @property
    def method(self) -> Literal["platt", "isotonic"]:
        """What the map is called."""
        return "platt" if isinstance(self.map, Platt) else "isotonic"


def read_calibration(folder: Path, identity: str) -> Calibration | None:
    """Return the calibration of the artifact in a folder, or None if it has none.

    Raises ArtifactError for a file that is damaged, that a newer rankrt wrote, or that is another artifact's.
    """
    path = folder / CALIBRATION
    again = "Remove the file. `rankrt calibrate` fits another one"
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArtifactError(unreadable(path, error)) from error
    try:
        version = msgspec.json.decode(content, type=_AnyVersion).format_version
        if version > CALIBRATION_VERSION:
            raise ArtifactError(
                f"{path} has format {version}, this rankrt reads up to {CALIBRATION_VERSION}: upgrade rankrt"
            )
        found = msgspec.json.decode(content, type=Calibration)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a calibration: {error}. {again}") from error
    if found.artifact != identity:
        raise ArtifactError(
            f"{path} was fitted to the artifact {found.artifact[:16]}, but this one is {identity[:16]}. {again}"
        )
    return found


def calibration_bytes(calibration: Calibration) -> bytes:
    """Return the content of calibration.json, for people to read as well."""
    return msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n"


class _AnyVersion(msgspec.Struct):
    """The one field that every version of the file has."""

    format_version: int
