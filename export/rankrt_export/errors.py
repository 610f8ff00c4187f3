"""What can go wrong in an export.

ExportError (rankrt.errors)
├── CheckpointError     the checkpoint is damaged, incomplete, or no reranker that can be exported
├── OptionsError        what is asked for does not exist
├── OutputError         the artifact cannot be written where it should go
├── TextError           a file of queries and passages cannot be read
└── VerificationError   a variant differs from the PyTorch model by more than its limit
    └── DriftError      by how much, which int8 answers with more layers in fp32
"""

from rankrt.errors import ExportError


class CheckpointError(ExportError):
    """The checkpoint is damaged, incomplete, or no reranker that can be exported."""


class OptionsError(ExportError):
    """What is asked for does not exist."""


class OutputError(ExportError):
    """The artifact cannot be written where it should go."""


class TextError(ExportError):
    """A file of queries and passages cannot be read."""


class VerificationError(ExportError):
    """A variant differs from the PyTorch model by more than its limit."""


class DriftError(VerificationError):
    """As far as it was measured: `excess` is how many times the drift that is allowed there was, at least 1.

    `variant` is the name of the variant that drifted.
    """

    def __init__(self, message: str, *, variant: str, excess: float) -> None:
        super().__init__(message)
        self.variant = variant
        self.excess = excess
