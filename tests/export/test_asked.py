"""A decoder is asked as it was trained to be asked, or it is refused; sentence-transformers is the reference."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.text.pairs import Pair
from rankrt_export.errors import CheckpointError
from rankrt_export.pipeline import Options, export
from tests.export.conftest import Make, change_config, torch, transformers
from tests.export.decoders import make_decoder, text_of, write_chat_template

pytestmark = pytest.mark.export

PAIRS: list[Pair] = [("who is it?", "me"), ("who is it?", "nobody at all, it is late"), ("why", "so")]


def write(path: Path, **content: Any) -> None:
    """Change entries of a JSON object, or write a new one."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | content))


def without_template(folder: Path) -> Path:
    (folder / "chat_template.jinja").unlink()
    return folder


def cross_encoder(folder: Path, out: Path, answers: tuple[str, str | None]) -> Any:
    """Save a decoder as sentence-transformers does, with the score read from two tokens."""
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    template = folder / "chat_template.jinja"
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", pad_token="<pad>"
    )
    tokenizer.chat_template = template.read_text() if template.exists() else None
    tokenizer.save_pretrained(folder)
    model = Transformer(str(folder), transformer_task="text-generation")
    ids: Any = model.tokenizer.get_vocab()
    yes, no = ids[answers[0]], ids.get(answers[1])
    encoder = sentence_transformers.CrossEncoder(modules=[model, LogitScore(true_token_id=yes, false_token_id=no)])
    encoder.save_pretrained(str(out))
    return encoder


def exported_scores(folder: Path, **options: Any) -> np.ndarray:
    artifact = export(str(folder), folder.parent / "artifact", Options(is_verified=False, **options))
    with Reranker.load(artifact.folder, precision="fp32", prepare=False) as reranker:
        return reranker.score(PAIRS)


# What sentence-transformers saves.


@pytest.mark.parametrize(("family", "answers"), [("Qwen3", ("yes", "no")), ("Qwen2", ("Yes", None))])
def test_a_decoder_that_it_asks_as_we_do_has_its_scores(tmp_path: Path, family: str, answers: tuple[str, str | None]):
    folder = make_decoder(tmp_path / "checkpoint", family)
    encoder = cross_encoder(folder, tmp_path / "saved", answers)
    expected = encoder.predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(exported_scores(tmp_path / "saved"), expected, atol=1e-4, rtol=0)


def test_an_encoder_that_it_saved_has_its_scores(make_checkpoint: Make, tmp_path: Path):
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")
    encoder = sentence_transformers.CrossEncoder(str(make_checkpoint()))
    encoder.save_pretrained(str(tmp_path / "saved"))
    expected = encoder.predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(exported_scores(tmp_path / "saved"), expected, atol=1e-4, rtol=0)
    # Its default is the sigmoid, which is what `normalize` is here.
    with Reranker.load(tmp_path / "artifact", precision="fp32") as reranker:
        hits = reranker.rank(PAIRS[0][0], [passage for _, passage in PAIRS], normalize=True)
    pairs = [(PAIRS[0][0], PAIRS[hit.index][1]) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], encoder.predict(pairs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompt", [None, "flagembedding", "qwen3-reranker"])
def test_answers_that_are_read_from_other_tokens_are_refused_whatever_the_user_says(tmp_path: Path, prompt: str | None):
    folder = without_template(make_decoder(tmp_path / "checkpoint", "Qwen2"))
    cross_encoder(folder, tmp_path / "saved", ("1", "0"))
    message = (
        r"modules\.json asks a Qwen2ForCausalLM with query and passage alone, without a prompt"
        if prompt is None
        else rf"1_LogitScore/config\.json has true_token_id = .* \('1'\) and .* \('0'\); the prompt {prompt} reads"
    )
    with pytest.raises(CheckpointError, match=message):
        exported_scores(tmp_path / "saved", prompt=prompt)


def test_a_chat_template_with_other_words_is_refused_whatever_the_user_says(tmp_path: Path):
    folder = make_decoder(tmp_path / "checkpoint", "Qwen3")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("web search query", "question"))
    cross_encoder(folder, tmp_path / "saved", ("yes", "no"))
    for prompt in (None, "qwen3-reranker"):
        with pytest.raises(CheckpointError, match=r"has a chat template that asks '.*Given a question, retrieve"):
            exported_scores(tmp_path / "saved", prompt=prompt)


def test_a_default_prompt_that_changes_the_words_is_refused(tmp_path: Path):
    cross_encoder(make_decoder(tmp_path / "checkpoint", "Qwen3"), tmp_path / "saved", ("yes", "no"))
    template = tmp_path / "saved" / "chat_template.jinja"
    given = "Given a web search query, retrieve relevant passages that answer the query"
    instruction = f'{{{{ {text_of("system")} | default("{given}") }}}}'
    template.write_text(template.read_text().replace(given, instruction))
    prompts = {"prompts": {"law": "Find the law"}, "default_prompt_name": "law"}
    assert exported_scores(tmp_path / "saved").std() > 0
    shutil.rmtree(tmp_path / "artifact")
    write(tmp_path / "saved" / "config_sentence_transformers.json", **prompts)
    with pytest.raises(CheckpointError, match=r"has a chat template that asks '.*Find the law"):
        exported_scores(tmp_path / "saved")


MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.base.modules.dense.Dense"}


def saved(name: str, **content: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "modules.json").write_text(json.dumps(MODULES))
        write(folder / name, **content)

    return change


def modules(*found: Any, kind: str | None = None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "modules.json").write_text(json.dumps(found))
        if kind:
            write(folder / "config_sentence_transformers.json", model_type=kind)

    return change


SENTENCE_TRANSFORMERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "an embedding model": (modules(*MODULES, POOLING), r"is an embedding model, not a reranker: .* \(modules\.json\)"),
    "an embedding model by its config": (modules(*MODULES, kind="SparseEncoder"), "saved it as a SparseEncoder"),
    "other modules": (
        modules(*MODULES, POOLING, DENSE, kind="CrossEncoder"),
        r"is a CrossEncoder of the modules Transformer, Pooling, Dense \(modules\.json\), which is not implemented",
    ),
    "a model in another folder": (
        modules({**MODULES[0], "path": "0_Transformer"}),
        "rankrt exports a Transformer in the folder itself",
    ),
    "modules that are none": (modules("Transformer"), r"modules\.json is not a list of modules"),
    "a prompt before every query": (
        saved("config_sentence_transformers.json", prompts={"q": "find: "}, default_prompt_name="q"),
        r"config_sentence_transformers\.json has default_prompt_name = 'q': .* puts 'find: ' before every query",
    ),
    "a prompt that is not there": (
        saved("config_sentence_transformers.json", prompts={}, default_prompt_name="q"),
        r"default_prompt_name = 'q', but no such text in prompts",
    ),
    "lower case": (
        saved("sentence_bert_config.json", do_lower_case=True),
        r"sentence_bert_config\.json has do_lower_case = True",
    ),
    "another task": (
        saved("sentence_bert_config.json", transformer_task="fill-mask"),
        "has transformer_task = 'fill-mask'",
    ),
    "its own way to tokenize": (
        saved("sentence_bert_config.json", processing_kwargs={"text": {"padding": "max_length"}}),
        r"has processing_kwargs\.text, which is not implemented",
    ),
    "an activation": (
        saved("config_sentence_transformers.json", activation_fn="torch.nn.modules.activation.Tanh"),
        r"has activation_fn = 'torch\.nn\.modules\.activation\.Tanh'; rankrt gives logits, or their sigmoid",
    ),
    "an activation of before 6.0": (
        lambda folder: change_config(folder, sentence_transformers={"activation_fn": "mine.Negative"}),
        r"config\.json has sentence_transformers\.activation_fn = 'mine\.Negative'",
    ),
    "an activation of before 4.0": (
        lambda folder: change_config(folder, sbert_ce_default_activation_function="torch.nn.Softmax"),
        r"config\.json has sbert_ce_default_activation_function = 'torch\.nn\.Softmax'",
    ),
}


@pytest.mark.parametrize("kind", SENTENCE_TRANSFORMERS)
def test_what_it_does_besides_the_model_is_refused_with_the_file_and_the_field(
    make_checkpoint: Make, tmp_path: Path, kind: str
):
    change, message = SENTENCE_TRANSFORMERS[kind]
    folder = make_checkpoint()
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        export(str(folder), tmp_path / "artifact", Options())


def test_activations_that_rankrt_has_and_prompts_that_are_not_asked_for_are_taken(make_checkpoint: Make):
    folder = make_checkpoint()
    change_config(folder, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    saved("config_sentence_transformers.json", prompts={"q": "find: "}, default_prompt_name=None)(folder)
    assert np.isfinite(exported_scores(folder)).all()


# What has no files of sentence-transformers.


@pytest.mark.parametrize("family", ["Gemma", "Llama", "Mistral", "Qwen2", "Qwen3"])
def test_a_decoder_that_does_not_say_how_it_is_asked_is_refused_until_the_user_does(tmp_path: Path, family: str):
    folder = without_template(make_decoder(tmp_path / "checkpoint", family))
    with pytest.raises(CheckpointError, match=r"nothing in it says how .* --prompt flagembedding"):
        exported_scores(folder)
    assert exported_scores(folder, prompt="flagembedding").std() > 0


def test_a_decoder_with_a_head_is_refused_too(tmp_path: Path):
    folder = without_template(make_decoder(tmp_path / "checkpoint", "Qwen2"))
    change_config(folder, architectures=["Qwen2ForSequenceClassification"], num_labels=1)
    with pytest.raises(CheckpointError, match="checkpoint is a Qwen2ForSequenceClassification, and nothing in it says"):
        exported_scores(folder)


@pytest.mark.parametrize(
    ("name", "family", "style"),
    [("bge-reranker-v2-gemma", "Gemma", "flagembedding"), ("Qwen3-Reranker-0.6B", "Qwen3", "qwen3-reranker")],
)
def test_what_its_authors_call_by_this_name_is_asked_as_they_ask_it(tmp_path: Path, name: str, family: str, style: str):
    folder = without_template(make_decoder(tmp_path / name, family))
    by_name = exported_scores(folder)
    shutil.rmtree(tmp_path / "artifact")
    assert exported_scores(folder, prompt=style).tobytes() == by_name.tobytes()


def test_another_model_of_that_name_is_refused(tmp_path: Path):
    folder = without_template(make_decoder(tmp_path / "bge-reranker-v2-gemma", "Llama"))
    with pytest.raises(CheckpointError, match="nothing in it says how it was trained to be asked"):
        exported_scores(folder)


def test_a_chat_template_says_how_to_ask_if_it_is_ours_to_the_letter(tmp_path: Path):
    folder = make_decoder(tmp_path / "checkpoint", "Qwen3")
    template = (folder / "chat_template.jinja").read_text()
    expected = exported_scores(folder)
    shutil.rmtree(tmp_path / "artifact")
    others = (template.replace("Judge", "Say"), template + "\n", "{{ messages[0].content }}", "{{ raise() }}", "{%")
    for other in others:
        (folder / "chat_template.jinja").write_text(other)
        with pytest.raises(CheckpointError, match="no chat template of it asks as these are asked"):
            exported_scores(folder)
    (folder / "chat_template.jinja").unlink()
    write(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": template}])
    assert exported_scores(folder).tobytes() == expected.tobytes()


def test_a_template_that_strips_texts_is_another(tmp_path: Path):
    folder = make_decoder(tmp_path / "checkpoint", "Gemma")
    write_chat_template(folder, "flagembedding")
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("| first }}", "| first | trim }}"))
    with pytest.raises(CheckpointError, match="no chat template of it asks as these are asked"):
        exported_scores(folder)
