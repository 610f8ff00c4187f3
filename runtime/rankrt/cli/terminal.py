"""What people see while a command runs: progress, and what it waits for. It goes to standard error, results do not."""

import io
import sys
from typing import Any

from tqdm import tqdm

from rankrt.cli import inputs, streams


def open_input(name: str) -> io.BufferedReader:
    """Open a file, or for "-" standard input; say how to end it if it is a keyboard. Raises InputError."""
    file = inputs.open_input(name)
    if file.isatty():
        print("rankrt: reading from the terminal; end with Ctrl-D", file=sys.stderr)
    return file


def bar(total: int | None, unit: str) -> Any:
    """Return a bar that shows progress on a terminal, and nothing elsewhere."""
    return tqdm(total=total, unit=unit, leave=False, disable=not streams.is_terminal())


def write(lines: str, bar: Any) -> None:
    """Write results at once, so that they are not lost if later ones fail, and apart from the bar on a terminal."""
    bar.clear()
    print(f"{lines}\n", end="", flush=True)  # in one piece, also where Ctrl-C comes between


def note_empty(name: str, what: str) -> None:
    """Say that a file was read and has nothing in it."""
    print(f"rankrt: {name} has no {what}, so there is nothing to score", file=sys.stderr)
