"""The standard streams as processes get them: closed, in another encoding, full, or without a reader."""

import codecs
import contextlib
import io
import os
import sys


def mend() -> None:
    """Make the standard streams safe: a closed one fails when it is used, and every character can be written.

    A closed stream has a free descriptor. The next file to be opened would get it, and receive what is printed. Where
    the encoding has no such character, as ASCII, \\uXXXX is written. Inside a JSON string that is the same text.
    """
    # Opened the wrong way around, the descriptors of input and output answer EBADF, as those that are closed do.
    for name, mode in (("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, mode)
            if name != "stdin":
                setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ESCAPED)


def abandon_output() -> None:
    """Drop what could not be written, so that Python does not complain once more when it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_terminal() -> bool:
    """Tell whether a person may be looking at standard error."""
    return sys.stderr.isatty()


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    escaped = (f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
    return "".join(escaped), error.end


_ESCAPED = "rankrt.escaped"
codecs.register_error(_ESCAPED, _escape)
