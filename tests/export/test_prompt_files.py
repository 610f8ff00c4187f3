"""A way of asking in the user's own words, and what `rankrt info` says of how a model is asked."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from rankrt import InputError, Reranker
from rankrt.cli.main import main
from rankrt.text.options import Rules
from rankrt_export.decoders.prompt_files import read_prompt_file
from rankrt_export.errors import CheckpointError, OptionsError
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.verify import example_pairs
from tests.export.conftest import Make, change_config
from tests.export.decoders import make_decoder, write_qwen_tokenizer

pytestmark = pytest.mark.export

FILE = r"""
text = "<|im_start|>user\nquery: {query}\ndocument: {document}\nRelevant {{0 or 1}}?<|im_end|>\n<|im_start|>assistant\n"
instructed = '''<|im_start|>user
{instruction}
query: {query}
document: {document}
Relevant {{0 or 1}}?<|im_end|>
<|im_start|>assistant
'''
answers = ["1", "0"]
"""


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    folder = make_decoder(tmp_path / "mine", "Qwen2", vocab_size=960)
    (folder / "chat_template.jinja").unlink()
    write_qwen_tokenizer(folder)
    return folder


def written(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "words.toml"
    path.write_text(content)
    return path


def test_a_row_has_the_tokens_of_the_words_in_the_file(decoder: Path, tmp_path: Path):
    words = read_prompt_file(written(tmp_path, FILE))
    artifact = export(str(decoder), tmp_path / "artifact", Options(is_verified=False, prompt=words))
    tokenizer = Tokenizer.from_file(str(artifact.path("tokenizer.json")))
    end = ".\n\nRelevant {0 or 1}?<|im_end|>\n<|im_start|>assistant\n"
    plain = "<|im_start|>user\nquery: who?\n\ndocument: It is me" + end
    told = "<|im_start|>user\nFind the law\nquery: who?\n\ndocument: It is me" + end
    with Reranker.load(artifact.folder, precision="fp32", prepare=False) as reranker:
        for text, rules in ((plain, {}), (told, {"instruction": "Find the law"})):
            row = reranker.with_rules(**rules).encode([("who?\n", "It is me.\n")]).row(0).tolist()
            assert row == tokenizer.encode(text, add_special_tokens=False).ids
    score = artifact.manifest.score
    assert score is not None
    assert score.answers == ("1", "0")


def test_examples_for_other_hosts_fit_beside_a_long_prompt(decoder: Path, tmp_path: Path):
    words = read_prompt_file(
        written(tmp_path, FILE.replace("Relevant", "Relevant to the question, by its words? " * 20))
    )
    artifact = export(str(decoder), tmp_path / "artifact", Options(is_verified=False, prompt=words))
    assert artifact.manifest.template.room(512) < 384  # three quarters are what a query may have
    rows = RowMaker.open(artifact)
    pairs = example_pairs(sample(), rows, 4)
    assert pairs
    encoded = rows.tokenizer.encode(pairs, Rules(max_length=512))
    assert not (encoded.truncated | encoded.query_truncated).any()


def test_info_says_how_a_model_is_asked_and_what_a_score_is(
    decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (decoder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n- de\n---\n# A model\n")
    command = ["export", str(decoder), str(tmp_path / "artifact"), "--no-verify"]
    assert main([*command, "--prompt-file", str(written(tmp_path, FILE))]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "artifact")]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "mine: Qwen2ForCausalLM, up to 2048 tokens"
    assert lines[2] == "asked in the style words, as --prompt-file words.toml says; takes an instruction"
    assert lines[3] == "a score is the logit of '1' less the logit of '0'"
    assert lines[4] == "by its model card: languages en, de; license apache-2.0"


@pytest.mark.parametrize("card", ["---\nlicense: [\n---\n", "no front matter", "---\n- a list\n---\n", "\xff"])
def test_a_card_that_says_nothing_is_no_error(make_checkpoint: Make, tmp_path: Path, card: str):
    folder = make_checkpoint()
    (folder / "README.md").write_bytes(card.encode("latin-1"))
    source = export(str(folder), tmp_path / "artifact", Options(is_verified=False)).manifest.source
    assert (source.license, source.languages) == (None, ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text = ", "is not TOML"),
        ("answers = ['yes']", "missing required field `text`"),
        ("text = '{query} {document}'\nwords = 1", "unknown field `words`"),
        ("text = '{query}'", r"text needs \{query\}, \{document\}, each once, and it has \{query\}"),
        ("text = '{query}\n{document}{document}'", "is not TOML"),
        ("text = '{query}{document}{x}'", r"each once, and it has \{query\}, \{document\}, \{x\}"),
        ("text = '{query:>9}{document}'", "text is not a format: query has a format of its own"),
        ("text = '{query} {'", "text is not a format"),
        (
            "text = '{query}{document}'\ninstructed = '{query}{document}'",
            r"instructed needs \{query\}, \{document\}, \{instr",
        ),
        ("text = '{query}{document}'\ninstructed = '{document}{query}{instruction}'", "in another order"),
        ("text = '{query}{document}'\nanswers = ['a', 'b', 'c']", "cannot be used: Expected `array` of length <= 2"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, content: str, message: str):
    with pytest.raises(OptionsError, match=message):
        read_prompt_file(written(tmp_path, content))
    with pytest.raises(OptionsError, match="cannot be read: No such file"):
        read_prompt_file(tmp_path / "nowhere.toml")


LINES = 'text = "query: {query}\\ndocument: {document}\\n"\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINES, r"words\.toml: mine is a Qwen2ForCausalLM, which needs answers"),
        (LINES + "answers = ['maybe']", "has no token 'maybe' .* whose logit the score is"),
        (LINES + "answers = [5000]", "the logit of token 5000, which the vocabulary does not have"),
        ('text = "{query} {document}"\nanswers = ["yes"]', "puts ' ' between the two texts. Tokens can cross it"),
    ],
)
def test_words_that_do_not_suit_the_model_are_refused(decoder: Path, tmp_path: Path, content: str, message: str):
    words = read_prompt_file(written(tmp_path, content))
    with pytest.raises(CheckpointError, match=message):
        export(str(decoder), tmp_path / "artifact", Options(prompt=words))


def test_a_style_or_a_class_that_does_not_exist_is_refused_with_those_that_do(decoder: Path, tmp_path: Path):
    with pytest.raises(OptionsError, match="--prompt cohere: there are flagembedding, flagembedding-lightweight, qw"):
        export(str(decoder), tmp_path / "artifact", Options(prompt="cohere"))
    change_config(decoder, architectures=["Phi3ForCausalLM"])
    with pytest.raises(
        CheckpointError, match=r"mine is a Phi3ForCausalLM, which is not implemented; .* Qwen3ForCausalLM"
    ):
        export(str(decoder), tmp_path / "artifact", Options())


def test_a_style_and_a_file_are_not_both_given(decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = str(written(tmp_path, FILE))
    command = ["export", str(decoder), str(tmp_path / "artifact"), "--prompt", "zerank", "--prompt-file", words]
    assert main(command) == 1
    assert "--prompt and --prompt-file both say how the model is asked" in capsys.readouterr().err


def test_an_instruction_for_a_model_without_a_place_for_one_is_refused(make_checkpoint: Make, tmp_path: Path):
    artifact = export(str(make_checkpoint()), tmp_path / "artifact", Options(is_verified=False))
    with Reranker.load(artifact.folder, precision="fp32", prepare=False) as reranker:
        message = "instruction is given, but this model was trained without a place for an instruction; leave it out"
        with pytest.raises(InputError, match=message):
            reranker.rank("who?", ["me"], instruction="Find the law")
        with pytest.raises(InputError, match="prompt_name is given, but this model was trained without a place"):
            reranker.score([("who?", "me")], prompt_name="law")
        assert reranker.rank("who?", ["me"], instruction="").hits == reranker.rank("who?", ["me"]).hits


def test_the_command_tells_a_model_what_to_look_for(decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = read_prompt_file(written(tmp_path, FILE))
    artifact = export(str(decoder), tmp_path / "artifact", Options(is_verified=False, prompt=words))
    (tmp_path / "documents.txt").write_text("It is me.\nIt is late.\n")
    command = ["rerank", str(artifact.folder), "--query", "who?", "--documents", str(tmp_path / "documents.txt")]
    command += ["--precision", "fp32", "--no-prepare", "--json"]
    outputs: list[Any] = []
    for options in ([], ["--instruction", "Find the law"]):
        assert main([*command, *options]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] != outputs[1]


def test_labels_of_inference_are_named(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint()
    labels = {"0": "contradiction", "1": "entailment", "2": "neutral"}
    change_config(folder, id2label=labels, label2id={name: int(i) for i, name in labels.items()})
    with pytest.raises(
        CheckpointError, match=r"has 3 labels \(contradiction, entailment, neutral\): it is a classifier"
    ):
        export(str(folder), tmp_path / "artifact", Options())
