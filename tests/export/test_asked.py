"""A decoder is asked as it was trained to be asked, or it is refused; sentence-transformers is the reference."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from rankrt import InputError, Reranker
from rankrt.text.pairs import Pair
from rankrt_export.errors import CheckpointError
from rankrt_export.pipeline import Options, export
from tests.export.conftest import Make, change_config, torch, transformers
from tests.export.decoders import make_decoder, text_of, write_chat_template, write_qwen_tokenizer

pytestmark = pytest.mark.export

PAIRS: list[Pair] = [("who is it?", "me"), ("who is it?", "nobody at all, it is late"), ("why", "so")]


def write(path: Path, **content: Any) -> None:
    """Change entries of a JSON object, or write a new one."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | content))


def without_template(folder: Path) -> Path:
    (folder / "chat_template.jinja").unlink()
    return folder


def cross_encoder(folder: Path, out: Path, answers: tuple[str, str | None], mark: str = "<pad>") -> Any:
    """Save a decoder as sentence-transformers does, with the score read from two tokens."""
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    template = folder / "chat_template.jinja"
    begins = {"bos_token": "<s>"} if mark == "<pad>" else {}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token=mark, **begins
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


ODD: list[Pair] = [
    *PAIRS,
    (" who is it?\n", "\n it is me.\n\n"),
    ("'s <b>{it}</b>", "12 3.14 {}"),
    ("was ist das", ""),
    ("?", "a line\r\nand\ta tab.\n"),
]
SYSTEM = "{% set task = " + text_of("system") + ' | default("Given a search, find the answer", true) %}'
QUERY, DOCUMENT = text_of("query"), text_of("document")
# What templates do: an instruction in the user's turn or in the system's, words after the passage, the passage first,
# and texts that are stripped.
TEMPLATES = {
    "instruction and query": SYSTEM
    + "<|im_start|>user\n<Instruct>: {{ task }}\n<Query>: {{ "
    + QUERY
    + " }}\n<Document>: {{ "
    + DOCUMENT
    + " }}<|im_end|>\n<|im_start|>assistant\n\n",
    "words after the passage": "<|im_start|>user\n{% for message in messages if message.role == 'system' %}instruction:"
    " {{ message.content }}\n{% endfor %}query: {{ "
    + QUERY
    + " }}\ndocument: {{ "
    + DOCUMENT
    + " }}\nJudge from 0 to 1.\nRelevance:<|im_end|>\n<|im_start|>assistant\n\n",
    "the passage first": "Check the document.\n<Document> {{ "
    + DOCUMENT
    + " }}\n<Query> {{ "
    + QUERY
    + " }}{% for message in messages if message.role == 'system' %} {{ message.content }}{% endfor %} ??",
    "marks beside the texts": "<|im_start|>{% for message in messages if message.role == 'system' %}"
    "{{ message.content }}"
    "<think>{% endfor %}{{ " + QUERY + " }}</think>{{ " + DOCUMENT + " }}<|im_end|>",
    "stripped texts": SYSTEM
    + "<|im_start|>system\n{{ task }}<|im_end|>\n<|im_start|>user\n{{ "
    + QUERY
    + " | trim }}<|im_end|>\n<|im_start|>user\n{{ "
    + DOCUMENT
    + " | trim }}<|im_end|>\n<|im_start|>assistant\n\n",
}


def rows_of(encoder: Any, pairs: list[Pair], prompt: str | None) -> list[list[int]]:
    """Return the rows that sentence-transformers makes, without padding."""
    found = encoder.preprocess([list(pair) for pair in pairs], prompt=prompt)
    return [
        [id_ for id_, is_token in zip(ids, mask, strict=True) if is_token]
        for ids, mask in zip(found["input_ids"].tolist(), found["attention_mask"].tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def saved_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Save a decoder with a chat template as sentence-transformers does; once."""
    made: dict[str, tuple[Any, Path]] = {}

    def save(name: str) -> tuple[Any, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("saved")
            make_decoder(folder / "checkpoint", "Qwen3", vocab_size=960)
            write_qwen_tokenizer(folder / "checkpoint")
            (folder / "checkpoint" / "chat_template.jinja").write_text(TEMPLATES[name])
            encoder = cross_encoder(folder / "checkpoint", folder / "saved", ("yes", "no"), mark="<|endoftext|>")
            made[name] = encoder, folder / "saved"
        return made[name]

    return save


@pytest.mark.parametrize("name", TEMPLATES)
def test_any_chat_template_with_both_roles_gives_its_ids_and_its_scores(
    saved_with: Callable[[str], tuple[Any, Path]], tmp_path: Path, name: str
):
    encoder, folder = saved_with(name)
    artifact = export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    prompt = artifact.manifest.template.prompt
    assert prompt is not None
    assert (prompt.style, prompt.said_by) == ("chat template", "modules.json")
    with Reranker.load(artifact.folder, precision="fp32", prepare=False, max_length=1000) as reranker:
        for instruction in (None, "Find the law."):
            asked = reranker.with_rules(instruction=instruction)
            encoded = asked.encode(ODD)
            rows = rows_of(encoder, ODD, instruction)
            assert [encoded.row(i).tolist() for i in range(encoded.n_rows)] == rows
            expected = encoder.predict(ODD, prompt=instruction, activation_fn=torch.nn.Identity())
            # fp32: padding and the order of summation differ.
            np.testing.assert_allclose(asked.evaluate(ODD).logits, expected, atol=1e-4, rtol=0)
            assert expected.std() > 0.1


@pytest.mark.filterwarnings("ignore")
def test_a_decoder_with_a_head_and_a_chat_template_has_its_scores(tmp_path: Path):
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")
    from sentence_transformers.base.modules import Transformer

    folder = make_decoder(tmp_path / "checkpoint", "Qwen3", vocab_size=960)
    write_qwen_tokenizer(folder)
    marks = {"pad_token": "<|endoftext|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **marks)
    tokenizer.chat_template = TEMPLATES["instruction and query"]
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    module = Transformer(str(folder), transformer_task="sequence-classification")
    encoder = sentence_transformers.CrossEncoder(modules=[module])
    encoder.save_pretrained(str(tmp_path / "saved"))
    artifact = export(str(tmp_path / "saved"), tmp_path / "artifact", Options(is_verified=False))
    assert artifact.manifest.score is not None
    assert artifact.manifest.score.answers == ()
    with Reranker.load(artifact.folder, precision="fp32", prepare=False, max_length=1000) as reranker:
        for instruction in (None, "Find the law."):
            asked = reranker.with_rules(instruction=instruction)
            encoded = asked.encode(ODD)
            assert [encoded.row(i).tolist() for i in range(encoded.n_rows)] == rows_of(encoder, ODD, instruction)
            expected = encoder.predict(ODD, prompt=instruction, activation_fn=torch.nn.Identity(), batch_size=1)
            # fp32: the order of summation differs.
            np.testing.assert_allclose(asked.evaluate(ODD).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_long_passage_is_cut_as_it_cuts_it(saved_with: Callable[[str], tuple[Any, Path]], tmp_path: Path, name: str):
    encoder, folder = saved_with(name)
    artifact = export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    pairs: list[Pair] = [("who?", "It is late.\n" * n) for n in (1, 40, 60)]
    encoder.max_seq_length = 256
    expected = rows_of(encoder, pairs, None)
    encoder.max_seq_length = 2048
    with Reranker.load(artifact.folder, precision="fp32", prepare=False, max_length=256) as reranker:
        encoded = reranker.encode(pairs)
        rows = [encoded.row(i).tolist() for i in range(encoded.n_rows)]
        if name != "the passage first":
            assert rows == expected
            return
        # It cuts the query away with the end of the text: all passages would get one score. Here the passage is cut.
        tokenizer = Tokenizer.from_file(str(artifact.path("tokenizer.json")))
        assert [len(row) for row in rows] == [len(row) for row in expected]
        assert all(tokenizer.decode(row).endswith("\n<Query> who? ??") for row in rows)


def test_prompts_by_name_and_a_default_one_are_asked_as_it_asks_them(
    saved_with: Callable[[str], tuple[Any, Path]], tmp_path: Path
):
    encoder, folder = saved_with("instruction and query")
    shutil.copytree(folder, tmp_path / "saved")
    prompts = {"law": "Find the law", "query": "", "code": "Find the function"}
    said = tmp_path / "saved" / "config_sentence_transformers.json"
    write(said, prompts=prompts, default_prompt_name="law")
    artifact = export(str(tmp_path / "saved"), tmp_path / "artifact", Options(is_verified=False))
    with Reranker.load(artifact.folder, precision="fp32", prepare=False) as reranker:
        for prompt, rules in (("Find the law", {}), ("Find the function", {"prompt_name": "code"})):
            encoded = reranker.with_rules(**rules).encode(PAIRS)
            assert [encoded.row(i).tolist() for i in range(encoded.n_rows)] == rows_of(encoder, PAIRS, prompt)
        with pytest.raises(InputError, match=r"prompt_name='query' is not an instruction of .*: 'law', 'code'"):
            reranker.with_rules(prompt_name="query")
        with pytest.raises(InputError, match="instruction and prompt_name both say"):
            reranker.with_rules(instruction="x", prompt_name="law")


def test_an_encoder_s_prompts_stand_before_the_query(make_checkpoint: Make, tmp_path: Path):
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")
    prompts = {"find": "find: ", "compare": "compare: "}
    encoder = sentence_transformers.CrossEncoder(str(make_checkpoint()), prompts=prompts, default_prompt_name="find")
    encoder.save_pretrained(str(tmp_path / "saved"))
    artifact = export(str(tmp_path / "saved"), tmp_path / "artifact", Options())
    with Reranker.load(artifact.folder, precision="fp32") as reranker:
        identity = torch.nn.Identity()
        expected = encoder.predict(PAIRS, activation_fn=identity)
        np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=1e-4, rtol=0)
        expected = encoder.predict(PAIRS, prompt_name="compare", activation_fn=identity)
        np.testing.assert_allclose(reranker.score(PAIRS, prompt_name="compare"), expected, atol=1e-4, rtol=0)
        expected = encoder.predict(PAIRS, prompt="say: ", activation_fn=identity)
        np.testing.assert_allclose(reranker.score(PAIRS, instruction="say: "), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompt", [None, "flagembedding", "qwen3-reranker"])
def test_answers_that_are_read_from_other_tokens_are_refused_whatever_the_user_says(tmp_path: Path, prompt: str | None):
    folder = without_template(make_decoder(tmp_path / "checkpoint", "Qwen2"))
    cross_encoder(folder, tmp_path / "saved", ("1", "0"))
    message = (
        r"modules\.json asks a Qwen2ForCausalLM with query and passage alone, without a prompt"
        if prompt is None
        else rf"1_LogitScore/config\.json reads the score from the tokens .* \('1'\) and .* \('0'\)\. --prompt {prompt}"
    )
    with pytest.raises(CheckpointError, match=message):
        exported_scores(tmp_path / "saved", prompt=prompt)


def test_a_checkpoint_that_says_how_it_is_asked_is_asked_in_no_other_way(
    saved_with: Callable[[str], tuple[Any, Path]], tmp_path: Path
):
    _, folder = saved_with("instruction and query")
    with pytest.raises(CheckpointError, match=r"--prompt qwen3-reranker: saved says itself how it is asked"):
        export(str(folder), tmp_path / "artifact", Options(prompt="qwen3-reranker"))


BAD_TEMPLATES = {
    "a chat model's": (
        "{% for m in messages if m.role in ('system', 'user') %}{{ m.content }}\n{% endfor %}",
        "cannot carry a query and a document: what it renders has the message of the role query 0 times",
    ),
    "both texts on a line": (
        "query: {{ " + QUERY + " }} {{ " + DOCUMENT + " }}<|im_end|>",
        "puts ' ' between the two texts. Tokens can cross it",
    ),
    "texts in capitals": (
        "query: {{ " + QUERY + " | upper }}\ndocument: {{ " + DOCUMENT + " }}<|im_end|>",
        "changes the texts of the roles query and document",
    ),
    "no template": ("{%", "cannot be rendered with the roles query and document"),
}


@pytest.mark.parametrize("kind", BAD_TEMPLATES)
def test_a_template_that_cannot_carry_a_pair_is_refused(
    saved_with: Callable[[str], tuple[Any, Path]], tmp_path: Path, kind: str
):
    template, message = BAD_TEMPLATES[kind]
    _, folder = saved_with("instruction and query")
    shutil.copytree(folder, tmp_path / "saved")
    (tmp_path / "saved" / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=message):
        export(str(tmp_path / "saved"), tmp_path / "artifact", Options())


MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
ROUTER = {"idx": 1, "name": "1", "path": "1_Router", "type": "sentence_transformers.base.modules.router.Router"}
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
    "a module that is not known": (
        modules(*MODULES, ROUTER, kind="CrossEncoder"),
        r"modules\.json has the module sentence_transformers\.base\.modules\.router\.Router, which is not implemented",
    ),
    "a module with code of its own": (
        modules(*MODULES, {**DENSE, "type": "mine.Head"}, kind="CrossEncoder"),
        r"modules\.json has the module mine\.Head, .* rankrt never runs code from a checkpoint",
    ),
    "modules in another order": (
        modules(*MODULES, DENSE, POOLING, kind="CrossEncoder"),
        r"is a CrossEncoder of the modules Transformer, Dense, Pooling \(modules\.json\), which is not implemented",
    ),
    "a model in another folder": (
        modules({**MODULES[0], "path": "0_Transformer"}),
        "rankrt exports a Transformer in the folder itself",
    ),
    "modules that are none": (modules("Transformer"), r"modules\.json is not a list of modules"),
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
    with pytest.raises(
        CheckpointError, match=r"nor its name say how it was trained .* --prompt flagembedding or .* --prompt-file FILE"
    ):
        exported_scores(folder)
    assert exported_scores(folder, prompt="flagembedding").std() > 0


def test_a_decoder_with_a_head_is_refused_too(tmp_path: Path):
    folder = without_template(make_decoder(tmp_path / "checkpoint", "Qwen2"))
    change_config(folder, architectures=["Qwen2ForSequenceClassification"], num_labels=1)
    with pytest.raises(CheckpointError, match=r"checkpoint is a Qwen2ForSequenceClassification\. Neither its files"):
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
    with pytest.raises(CheckpointError, match="nor its name say how it was trained to be asked"):
        exported_scores(folder)


def test_a_chat_template_says_how_to_ask_if_it_is_ours_to_the_letter(tmp_path: Path):
    folder = make_decoder(tmp_path / "checkpoint", "Qwen3")
    template = (folder / "chat_template.jinja").read_text()
    expected = exported_scores(folder)
    shutil.rmtree(tmp_path / "artifact")
    others = (template.replace("Judge", "Say"), template + "\n", "{{ messages[0].content }}", "{{ raise() }}", "{%")
    for other in others:
        (folder / "chat_template.jinja").write_text(other)
        with pytest.raises(CheckpointError, match="nor its name say how it was trained to be asked"):
            exported_scores(folder)
    (folder / "chat_template.jinja").unlink()
    write(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": template}])
    assert exported_scores(folder).tobytes() == expected.tobytes()


def test_a_template_that_strips_texts_is_another(tmp_path: Path):
    folder = make_decoder(tmp_path / "checkpoint", "Gemma")
    write_chat_template(folder, "flagembedding")
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("| first }}", "| first | trim }}"))
    with pytest.raises(CheckpointError, match="nor its name say how it was trained to be asked"):
        exported_scores(folder)
