"""What can go wrong in an export.

ExportError (rankrt.errors)
├── CheckpointError     the checkpoint is damaged, incomplete, or no reranker that can be exported
├── OutputError         the artifact cannot be written where it should go
├── TextError           a file of queries and passages cannot be read
└── VerificationError   a variant differs from the PyTorch model by more than its limit
"""

from rankrt.errors import ExportError


class CheckpointError(ExportError):
    """The checkpoint is damaged, incomplete, or no reranker that can be exported."""


class OutputError(ExportError):
    """The artifact cannot be written where it should go."""


class TextError(ExportError):
    """A file of queries and passages cannot be read."""


class VerificationError(ExportError):
    """A variant differs from the PyTorch model by more than its limit."""
