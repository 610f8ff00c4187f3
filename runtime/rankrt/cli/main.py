"""The `rankrt` command: results go to standard output, talk to standard error, and an error is a sentence or two.

Each command is imported when it is called, so that one that needs no model starts without what models need.
"""

import errno
import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import click
from click.shell_completion import shell_complete

from rankrt import RankrtError, __version__
from rankrt.cli import streams
from rankrt.cli.arguments import Command, Group, sentence
from rankrt.extras import EXTRAS, load, missing

_TRACEBACK = "RANKRT_TRACEBACK"
# The script that `rankrt completion` prints asks by this variable what may follow on the line.
_COMPLETE = "_RANKRT_COMPLETE"
# What a write raises for a full disk, a quota, a limit, a damaged disk, and for a stream that is closed.
_OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
_STATUSES = [
    ("0", "done"),
    ("1", f"an error, explained in a sentence; {_TRACEBACK}=1 shows where it was raised"),
    ("2", "wrong usage"),
    ("130", "interrupted with Ctrl-C; scores that were ready are written"),
    ("141", "the reader of a pipe has left"),
]
# Those of every command.
_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_COMMANDS = {
    "rerank": ("Order documents by how well they answer a query.", "rankrt.cli.rerank"),
    "score": ("Score pairs, line by line.", "rankrt.cli.score"),
    "info": ("Say what an artifact holds and how it was verified.", "rankrt.cli.info"),
    "prepare": ("Make an artifact's variants ready for this host, and verify them on a GPU.", "rankrt.cli.prepare"),
    "doctor": ("Examine this host, and an artifact on it.", "rankrt.cli.doctor"),
    "cache": ("List, tidy or clear what rankrt keeps on this host.", "rankrt.cli.cache"),
    "completion": ("Print a script that completes commands in a shell.", "rankrt.cli.completion"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status, one of those that its help lists."""
    streams.mend()
    _show_notices()
    try:
        status = _status(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except RankrtError as error:
        return _fail(str(error), error)
    except BrokenPipeError:
        streams.abandon_output()
        return 141
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process at once, without a traceback
        return 130
    except Exception as error:  # noqa: BLE001 - the last resort: a sentence, and the traceback for those who ask
        return _fail(_unforeseen(error), error)


def _status(arguments: list[str]) -> int:
    if instruction := os.environ.get(_COMPLETE):
        return shell_complete(program, {}, "rankrt", _COMPLETE, instruction)
    context = click.Context(program, info_name="rankrt", **_SETTINGS)
    if not arguments:
        print(program.get_help(context), file=sys.stderr)
        return 2
    try:
        with program.make_context("rankrt", arguments) as context:
            return int(program.invoke(context) or 0)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        path = "rankrt" if error.ctx is None else error.ctx.command_path
        # The usage, some lines of options, would hide what is wrong.
        print(f"{path}: error: {sentence(error)}\nRun `{path} --help` for what it takes.", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if context.invoked_subcommand not in EXTRAS or isinstance(error, RankrtError):
            raise
        raise missing(context.invoked_subcommand, error) from error


def _fail(message: str, error: BaseException) -> int:
    """Say on standard error what went wrong, and return the exit status."""
    with suppress(OSError):
        if os.environ.get(_TRACEBACK):
            traceback.print_exception(error)
        print(f"rankrt: error: {message}", file=sys.stderr, flush=True)
    return 1


def _unforeseen(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _OF_WRITING:
        streams.abandon_output()
        return f"writing failed: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"not enough memory ({error})" if str(error) else "not enough memory"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"{what:.300}. This is a mistake in rankrt {__version__}; please report it with what {_TRACEBACK}=1 prints and"
        " with the output of `rankrt doctor`"
    )


class _Deferred(Command):
    """A command whose module is imported when the command is called."""

    def __init__(self, name: str, help: str, module: str) -> None:
        super().__init__(name, help=help)
        self._module = module

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the arguments as the command itself does."""
        name = self.name or ""
        gc.disable()  # imports leave no garbage, and looking for some takes 20 ms of 300
        try:
            module = load(name, self._module) if name in EXTRAS else import_module(self._module)
        finally:
            gc.enable()
        command: click.Command = getattr(module, name)
        command.help = self.help
        return command.make_context(info_name, args, parent=parent, **extra)


class _Program(Group):
    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the exit statuses mean."""
        with formatter.section("Exit status"):
            formatter.write_dl(_STATUSES)


@click.group(
    "rankrt",
    cls=_Program,
    commands=[
        *(_Deferred(name, extra.help, extra.module) for name, extra in EXTRAS.items()),
        *(_Deferred(name, help, module) for name, (help, module) in _COMMANDS.items()),
    ],
    context_settings=_SETTINGS,
)
@click.version_option(__version__, message="rankrt %(version)s")
def program() -> None:
    """Rerankers compiled for ONNX Runtime: export once, score anywhere, without torch."""


def _show_notices() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("rankrt: %(message)s"))
    logger = logging.getLogger("rankrt")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [handler]


if __name__ == "__main__":
    sys.exit(main())
