"""The options that commands share: fields of the library's dataclasses, with their defaults and choices."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import ASKED_SETS, PRECISIONS
from rankrt.cli.arguments import Choice, Option
from rankrt.cli.main import main
from rankrt.cli.rerank import rerank
from rankrt.cli.score import score
from rankrt.options import LoadOptions
from rankrt.text.options import LongDocuments, Rules, Truncation

COMMANDS = pytest.mark.parametrize("command", [rerank, score], ids=["rerank", "score"])
# huggingface_hub reads HF_HUB_CACHE for it, in the commands as well.
NOT_OFFERED = {"cache_dir"}


def options_of(command: click.Command) -> dict[str, Option]:
    return {param.name: param for param in command.params if isinstance(param, Option) and param.name}


def words_of(option: Option) -> set[str]:
    assert isinstance(option.type, Choice)
    return set(option.type.choices)


@COMMANDS
def test_a_command_offers_every_field_of_the_load_options(command: click.Command):
    assert {field.name for field in fields(LoadOptions)} - NOT_OFFERED <= options_of(command).keys()


@COMMANDS
def test_what_is_left_out_is_what_the_library_takes(command: click.Command):
    with click.Context(command) as context:
        defaults: dict[str, Any] = {name: option.get_default(context) for name, option in options_of(command).items()}
    given = {field.name: defaults[field.name] for field in fields(LoadOptions) if field.name not in NOT_OFFERED}
    assert LoadOptions(**given) == LoadOptions()
    texts = ("query_max_length", "truncation", "long_documents")
    assert Rules(**{name: defaults[name] for name in texts}) == Rules()


@COMMANDS
def test_choices_are_those_of_the_field(command: click.Command):
    options = options_of(command)
    assert words_of(options["precision"]) == {"auto", *PRECISIONS}
    assert words_of(options["instruction_set"]) == {*ASKED_SETS}
    assert words_of(options["truncation"]) == {*get_args(Truncation)}
    assert words_of(options["long_documents"]) == {*get_args(LongDocuments)}


@COMMANDS
def test_every_option_has_a_sentence_in_the_help(command: click.Command):
    for name, option in options_of(command).items():
        said, _, _ = (option.help or "").partition("  [default")
        assert said.endswith("."), name


@pytest.mark.parametrize(
    ("arguments", "scores"),
    [
        ([], [1.0 + 9.0]),
        (["--max-length", "8"], [1.0 + 3.0]),
        (["--max-length=8", "--long-documents", "chunk"], [1.0 + 6.0]),
    ],
)
def test_what_is_given_reaches_the_library(
    artifact: Artifact, tmp_path: Path, arguments: list[str], scores: list[float], capsys: pytest.CaptureFixture[str]
):
    """The model adds up its words. Beside the query and the special tokens, 8 tokens hold 3 of the passage."""
    (tmp_path / "pairs.jsonl").write_text('{"query": "one", "passage": "one one one four one one"}')
    assert main(["score", str(artifact.folder), str(tmp_path / "pairs.jsonl"), *arguments]) == 0
    found: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["score"] for row in found] == scores
