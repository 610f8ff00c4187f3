"""The built-in styles against their authors' code: the package, or the recipe of the model card, run row by row."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.text.pairs import Pair
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample
from tests.export.conftest import torch, transformers
from tests.export.decoders import make_decoder, write_qwen_tokenizer

pytestmark = pytest.mark.export

INSTRUCTION = "Find the law, if there is one."
ODD: list[Pair] = [
    (" who is it?\n", "\n it is me.\n\n"),
    ("end.", "It is late.)\n"),
    ("'s <b>{it}</b>", "12 3.14 {}"),
    ("x", ""),
    ("?", "a line\r\nand\ta tab \n"),
]
Recipe = Callable[[Any, Any, str, str, str | None], tuple[list[int], float]]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Pairs of the sample in all its languages, and odd ones; none is cut."""
    found = [(question.query[:400], passage[:400]) for question in sample().questions for passage in question.passages]
    return ODD + found[:: max(1, len(found) // 16)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Write a tiny checkpoint of a model's real class under its name, with a tokenizer like Qwen's; once."""
    made: dict[str, Path] = {}

    def make(name: str, family: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("checkpoints") / name
            make_decoder(made[name], family, vocab_size=960, max_position_embeddings=4096)
            (made[name] / "chat_template.jinja").unlink()
            write_qwen_tokenizer(made[name])
        return made[name]

    return make


def last_logits(model: Any, ids: Sequence[int]) -> Any:
    with torch.inference_mode():
        return model(torch.tensor([list(ids)])).logits[0, -1]


def qwen3(tokenizer: Any, model: Any, query: str, document: str, instruction: str | None) -> tuple[list[int], float]:
    """As on the model card of Qwen3-Reranker-0.6B: prefix and suffix tokenized apart, the pair as one text."""
    task = instruction or "Given a web search query, retrieve relevant passages that answer the query"
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct"
        ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    pair = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}"
    ids = [
        *tokenizer.encode(prefix, add_special_tokens=False),
        *tokenizer(pair)["input_ids"],
        *tokenizer.encode(suffix, add_special_tokens=False),
    ]
    logits = last_logits(model, ids)
    yes, no = (tokenizer.convert_tokens_to_ids(answer) for answer in ("yes", "no"))
    return ids, float(logits[yes] - logits[no])


def zerank(tokenizer: Any, model: Any, query: str, document: str, instruction: str | None) -> tuple[list[int], float]:
    """As modeling_zeranker.py: Qwen3's chat template around the stripped texts; the logit of "Yes"."""
    if instruction is not None:
        query = f"<query>{query.strip()}</query>\n<instruction>{instruction}</instruction>"
    messages = [{"role": "system", "content": query.strip()}, {"role": "user", "content": document.strip()}]
    template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text)["input_ids"]
    return ids, float(last_logits(model, ids)[tokenizer.encode("Yes", add_special_tokens=False)[0]])


def ctxl(tokenizer: Any, model: Any, query: str, document: str, instruction: str | None) -> tuple[list[int], float]:
    """As on the model card of ctxl-rerank-v2-instruct-multilingual-1b: the logit of token 0."""
    asked = f"{query} {instruction}" if instruction else query
    text = (
        "Check whether a given document contains information helpful to answer the query.\n"
        f"<Document> {document}\n<Query> {asked} ??"
    )
    ids = tokenizer(text)["input_ids"]
    return ids, float(last_logits(model, ids)[0])


RECIPES: dict[str, tuple[str, str, Recipe]] = {
    "qwen3-reranker": ("Qwen3-Reranker-0.6B", "Qwen3", qwen3),
    "zerank": ("zerank-2", "Qwen3", zerank),
    "ctxl-rerank-v2": ("ctxl-rerank-v2-instruct-multilingual-1b", "Qwen3", ctxl),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Reranker]]:
    """Export a checkpoint and load it; once."""
    loaded: dict[Path, Reranker] = {}

    def load(folder: Path) -> Reranker:
        if folder not in loaded:
            out = tmp_path_factory.mktemp("artifacts") / folder.name
            artifact = export(str(folder), out, Options(is_verified=False))
            loaded[folder] = Reranker.load(artifact.folder, precision="fp32", prepare=False, max_length=2048)
        return loaded[folder]

    yield load
    for reranker in loaded.values():
        reranker.close()


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
@pytest.mark.parametrize("style", RECIPES)
def test_ids_and_scores_are_those_of_the_model_card_s_recipe(
    checkpoints: Callable[[str, str], Path],
    exported: Callable[[Path], Reranker],
    pairs: list[Pair],
    style: str,
    instruction: str | None,
):
    name, family, recipe = RECIPES[style]
    folder = checkpoints(name, family)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    reranker = exported(folder)
    asked = reranker.with_rules(instruction=instruction)
    encoded = asked.encode(pairs)
    rows, logits = zip(*(recipe(tokenizer, model, *pair, instruction) for pair in pairs), strict=True)
    assert [encoded.row(i).tolist() for i in range(encoded.n_rows)] == list(rows)
    assert not (encoded.truncated | encoded.query_truncated).any()
    # fp32: only the order of summation differs.
    np.testing.assert_allclose(asked.evaluate(pairs).logits, logits, atol=1e-4, rtol=0)
    assert np.std(logits) > 0.1
    prompt = reranker.artifact.manifest.template.prompt
    assert prompt is not None
    assert (prompt.style, prompt.said_by) == (style, f"the name {name}")


@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
def test_ids_and_scores_are_those_of_mxbai_rerank(
    checkpoints: Callable[[str, str], Path],
    exported: Callable[[Path], Reranker],
    pairs: list[Pair],
    instruction: str | None,
):
    package = pytest.importorskip("mxbai_rerank.mxbai_rerank_v2", reason="needs mxbai-rerank 0.1.6")
    folder = checkpoints("mxbai-rerank-base-v2", "Qwen2")
    theirs = package.MxbaiRerankV2(str(folder), device="cpu", torch_dtype=torch.float32, max_length=3000)
    asked = exported(folder).with_rules(instruction=instruction)
    encoded = asked.encode(pairs)
    queries, documents = ([pair[side] for pair in pairs] for side in (0, 1))
    inputs = theirs.prepare_inputs(queries, documents, instruction=instruction)
    rows = [
        [id_ for id_, is_token in zip(ids, mask, strict=True) if is_token]
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
    ]
    assert [encoded.row(i).tolist() for i in range(encoded.n_rows)] == rows
    # fp32: padding and the order of summation differ.
    expected = theirs.predict(queries, documents, instruction=instruction).numpy()
    np.testing.assert_allclose(asked.evaluate(pairs).logits, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1


@pytest.mark.parametrize("style", ["qwen3-reranker", "zerank", "ctxl-rerank-v2"])
@pytest.mark.parametrize("rules", [{}, {"truncation_side": "left"}, {"long_documents": "chunk"}])
def test_the_words_after_a_text_stay_when_it_is_cut(
    checkpoints: Callable[[str, str], Path], exported: Callable[[Path], Reranker], style: str, rules: dict[str, Any]
):
    name, family, _ = RECIPES[style]
    reranker = exported(checkpoints(name, family)).with_rules(max_length=800, **rules)
    encoded = reranker.encode([("who? " * 200, "It is late.\n" * 190), ("who?", "It is late.\n" * 190)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(reranker.artifact.folder / "tokenizer.json"))
    rows = [tokenizer.decode(encoded.row(i).tolist()) for i in range(encoded.n_rows)]
    assert all(len(encoded.row(i)) <= 800 for i in range(encoded.n_rows))
    kept = {
        "qwen3-reranker": "\n<Document>:",
        "zerank": "<|im_end|>\n<|im_start|>user\n",
        "ctxl-rerank-v2": "\n<Query>",
    }
    assert all(kept[style] in row for row in rows)
    assert all(row.endswith(" ??" if style == "ctxl-rerank-v2" else "\n") for row in rows)
