"""What can go wrong, as one tree. Catch `RankrtError` to catch all of it.

RankrtError
├── InputError         the text or an option of a call cannot be used (also a ValueError)
├── ArtifactError      an artifact is missing, damaged, unknown or of a newer format
├── DeviceError        this host cannot run what was asked for
├── ScoreError         the model answered with something that is not a score
├── ClosedError        the reranker was closed before the call
├── CacheError         the host's cache cannot be read or written
├── MissingExtra       a part that is not installed; the message names the pip command (also an ImportError)
└── ExportError        raised by rankrt_export, which divides it further
"""


class RankrtError(Exception):
    """The base of every error that rankrt raises on purpose."""


class InputError(RankrtError, ValueError):
    """The text or an option of a call cannot be used.

    A message names an option as Python spells it: `max_length` or `max_length=0`. A command line can put its own
    spelling there.
    """


class ArtifactError(RankrtError):
    """An artifact is missing, damaged, unknown or of a newer format."""


class DeviceError(RankrtError):
    """This host cannot run what was asked for."""


class ScoreError(RankrtError):
    """The model answered with something that is not a score."""


class ClosedError(RankrtError):
    """The reranker was closed before the call."""


class CacheError(RankrtError):
    """The host's cache cannot be read or written. Only what needs it raises this; the rest works without it."""


class MissingExtra(RankrtError, ImportError):
    """A part of rankrt that is not installed; the message names the pip command that brings it."""


class ExportError(RankrtError):
    """A checkpoint cannot become an artifact."""
