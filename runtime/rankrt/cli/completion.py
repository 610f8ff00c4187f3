"""`rankrt completion`: the script by which a shell asks `rankrt` what may follow on a line."""

import click
from click.shell_completion import get_completion_class

from rankrt.cli.arguments import Choice, Command, argument


@click.command(
    "completion",
    cls=Command,
    epilog='For this session: eval "$(rankrt completion bash)". For all: put that line into ~/.bashrc.',
)
@argument("shell", type=Choice(["bash", "zsh", "fish"]), metavar="SHELL", help="bash, zsh or fish.")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script."""
    program, kind = context.find_root(), get_completion_class(shell)
    assert kind is not None and program.info_name is not None
    print(kind(program.command, {}, program.info_name, f"_{program.info_name.upper()}_COMPLETE").source())
