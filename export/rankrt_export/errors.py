"""What can go wrong in an export.

ExportError (rankrt.errors)
├── CheckpointError     the checkpoint is damaged, incomplete, or not a reranker that can be exported
│   └── RangeError      a weight has a value that a precision cannot hold
├── OptionsError        an option asks for something that does not exist
├── OutputError         the artifact cannot be written to the given folder
├── TextError           a file of queries and passages cannot be read
└── VerificationError   a variant differs from the PyTorch model by more than its limit
    ├── VariantError    one variant, which the others do not depend on
    └── PartialError    the artifact was written without that variant
"""

import math

from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import VariantKey
from rankrt.errors import ExportError


class CheckpointError(ExportError):
    """The checkpoint is damaged, incomplete, or not a reranker that can be exported."""


class RangeError(CheckpointError):
    """A weight has a value that a precision cannot hold."""


class OptionsError(ExportError):
    """An option asks for something that does not exist."""


class OutputError(ExportError):
    """The artifact cannot be written to the given folder."""


class TextError(ExportError):
    """A file of queries and passages cannot be read."""


class VerificationError(ExportError):
    """A variant differs from the PyTorch model by more than its limit."""


class VariantError(VerificationError):
    """One variant cannot be written within its limits; the others do not depend on it.

    variant  which
    excess   how many times the allowed drift was measured, at least 1; infinite where there is no number
    """

    def __init__(self, message: str, *, variant: VariantKey, excess: float = math.inf) -> None:
        super().__init__(message)
        self.variant = variant
        self.excess = excess


class PartialError(VerificationError):
    """Some of the precisions that were asked for were left out; `artifact` has the others, verified."""

    def __init__(self, message: str, *, artifact: Artifact) -> None:
        super().__init__(message)
        self.artifact = artifact
