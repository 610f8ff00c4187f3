"""What people see while a command runs: progress, and what it waits for. It goes to standard error, results do not."""

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rankrt.cli import inputs, streams

# How often a job without a terminal says how far it is.
_LINE_S = 60.0


def open_input(name: str) -> io.BufferedReader:
    """Open a file, or for "-" standard input; say how to end it if it is a keyboard. Raises InputError."""
    file = inputs.open_input(name)
    if file.isatty():
        print("rankrt: reading from the terminal; end with Ctrl-D", file=sys.stderr)
    return file


def bar(total: int | None, unit: str) -> Any:
    """Return a bar that shows progress on a terminal, and nothing elsewhere."""
    if not streams.is_terminal():
        return _NoBar()
    from tqdm import tqdm  # up to 150 ms, as it asks for its own version

    return tqdm(total=total, unit=unit, leave=False)


class _NoBar:
    """Stands for a bar where there is no terminal."""

    disable = True

    def update(self, n: int) -> None:
        """Show nothing."""

    def clear(self) -> None:
        """Show nothing."""

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *failure: object) -> None:
        """Show nothing."""


class Counter:
    """A bar that also counts, where there is no terminal, too."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self.n_done = 0

    def update(self, n: int) -> None:
        """Count more."""
        self.n_done += n
        self._bar.update(n)


@contextmanager
def progress(total: int, n_done: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show the rate and the time left of a long job: a bar on a terminal, elsewhere a line a minute and one at the end.

    n_done   the part that was done before, which counts for the total and not for the rate
    """
    from tqdm import tqdm

    if streams.is_terminal():
        with tqdm(total=total, initial=n_done, unit=unit, leave=False) as bar:
            yield lambda n: bar.update(n) and None
        return
    started = said = time.monotonic()
    first, now = n_done, n_done

    def update(n: int) -> None:
        nonlocal now, said
        now += n
        if (moment := time.monotonic()) - said >= _LINE_S:
            said = moment
            rate = (now - first) / (moment - started)
            left = tqdm.format_interval((total - now) / rate)
            print(f"rankrt: {now:,} of {total:,} {unit}s, {rate:,.1f} a second, {left} left", file=sys.stderr)

    yield update
    seconds = time.monotonic() - started
    if now > first:
        rate = (now - first) / max(seconds, 1e-3)
        took = tqdm.format_interval(seconds)
        print(f"rankrt: scored {now - first:,} {unit}s in {took}, {rate:,.1f} a second", file=sys.stderr)


def write(lines: str, bar: Any) -> None:
    """Write results at once, so that they are not lost if later ones fail, and apart from the bar on a terminal."""
    bar.clear()
    print(f"{lines}\n", end="", flush=True)  # in one piece, also where Ctrl-C comes between


def note_empty(name: str, what: str) -> None:
    """Say that a file was read and has nothing in it."""
    print(f"rankrt: {name} has no {what}, so there is nothing to score", file=sys.stderr)
