"""`rankrt info`: what an artifact holds and how it was verified, for people or as JSON."""

import json
from pathlib import Path

import click
import msgspec

from rankrt.artifact.describe import describe
from rankrt.artifact.manifest import open_artifact
from rankrt.cli.arguments import Command, file_argument, option


@click.command("info", cls=Command)
@file_argument("artifact", type=Path, help="An artifact's folder.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(artifact: Path, as_json: bool) -> None:
    """Print what an artifact holds."""
    found = open_artifact(artifact)
    if as_json:
        print(json.dumps({"identity": found.identity, **msgspec.to_builtins(found.manifest)}, ensure_ascii=False))
    else:
        print(describe(found))
