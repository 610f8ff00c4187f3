"""The BERT family beside transformers: the ids, the token types and the logits of its own tokenizers and models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import Precision
from rankrt.text.pairs import Pair
from rankrt_export.errors import CheckpointError
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample
from rankrt_export.verify.rows import RowMaker
from tests.export.conftest import Make, change_config, torch, transformers
from tests.export.test_gpu_graphs import CUDA_KERNELS, TENSORRT_OPERATORS, TOLERANCES, graph_of, logits_on_gpus

pytestmark = pytest.mark.export

BERT: dict[str, Any] = {"type_vocab_size": 2, "max_position_embeddings": 512}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", BERT),
    "bert of one type": ("BertConfig", BERT | {"type_vocab_size": 1, "has_token_types": False}),
    "bert of one layer": ("BertConfig", BERT | {"num_hidden_layers": 1}),
    "electra": ("ElectraConfig", BERT | {"embedding_size": 32}),
    "electra with narrow embeddings": ("ElectraConfig", BERT | {"embedding_size": 16}),
    "distilbert": ("DistilBertConfig", {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}),
}


def of_transformers(folder: Path, pairs: list[Pair], max_length: int = 512) -> tuple[list[list[int]], Float32Array]:
    """Return the ids and the logit of each pair, one at a time, as transformers' tokenizer and model give them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [tokenizer([pair], truncation="longest_first", max_length=max_length, return_tensors="pt") for pair in pairs]
    with torch.inference_mode():
        logits = [model(**row).logits[0, 0].item() for row in rows]
    return [row["input_ids"][0].tolist() for row in rows], np.array(logits, np.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_and_logits_are_those_of_transformers(make_checkpoint: Make, tmp_path: Path, name: str):
    config, changes = FAMILIES[name]
    folder, pairs = make_checkpoint(config, **changes), sample().pairs
    export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    with Reranker.load(tmp_path / "artifact", precision="fp32", truncation="longest_first") as reranker:
        assert reranker.variant.layout == "packed"
        ids, expected = of_transformers(folder, pairs)
        encoded = reranker.encode(pairs)
        assert [encoded.row(i).tolist() for i in range(encoded.n_rows)] == ids
        found = reranker.score(pairs)
        # fp32: only the order of summation differs.
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        assert np.concatenate([reranker.score([pair]) for pair in pairs]).tobytes() == found.tobytes()
    assert expected.std() > 0.1


def test_query_and_passage_are_told_apart(make_checkpoint: Make, tmp_path: Path):
    """Texts of one length: only types tell one order of the two from a model that knows none."""
    export(str(make_checkpoint("BertConfig", **BERT)), tmp_path / "artifact", Options(is_verified=False))
    with Reranker.load(tmp_path / "artifact", precision="fp32") as reranker:
        encoded = reranker.encode([("one", "two")])
        as_passage = np.zeros_like(encoded.passage_starts)
        swapped = type(encoded)(**{name: getattr(encoded, name) for name in encoded.__slots__})
        object.__setattr__(swapped, "passage_starts", as_passage)
        assert reranker._scorer().backend.logits(encoded).last != reranker._scorer().backend.logits(swapped).last


def test_a_bert_whose_tokenizer_gives_no_types_is_told_none(make_checkpoint: Make, tmp_path: Path):
    """The tokenizer of XLM-RoBERTa, which some multilingual BERTs have."""
    folder, pairs = make_checkpoint("BertConfig", has_token_types=False, **BERT), sample().pairs[:40]
    export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    _, expected = of_transformers(folder, pairs)
    with Reranker.load(tmp_path / "artifact", precision="fp32", truncation="longest_first") as reranker:
        np.testing.assert_allclose(reranker.score(pairs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ("BertConfig", "hidden_act", "gelu_new"),
        ("BertConfig", "position_embedding_type", "relative_key"),
        ("DistilBertConfig", "activation", "relu"),
    ],
)
def test_what_is_not_implemented_is_named_as_config_json_names_it(
    make_checkpoint: Make, tmp_path: Path, config: str, field: str, value: str
):
    folder = make_checkpoint(config, **dict(FAMILIES.values())[config])
    change_config(folder, **{field: value})
    with pytest.raises(CheckpointError, match=rf"config\.json has {field} = '{value}'; only '.*' is implemented"):
        export(str(folder), tmp_path / "artifact", Options(is_verified=False))


def test_every_precision_is_within_its_limits(make_checkpoint: Make, tmp_path: Path):
    """Random weights of this size amplify what 8 bits round away: they are allowed more than trained ones are."""
    precisions: list[Precision] = ["fp32", "fp16", "int8", "w8"]
    folder = make_checkpoint("BertConfig", **BERT)
    artifact = export(
        str(folder), tmp_path / "artifact", Options(precisions=precisions, max_difference=0.5, min_tau=0.8)
    )
    assert {variant.precision for variant in artifact.manifest.variants} == set(precisions)
    for variant in artifact.manifest.variants:
        assert variant.verification is not None


# GPUs.


@pytest.fixture(scope="module")
def gpu_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    from tests.export.conftest import checkpoint_of

    folder = checkpoint_of(tmp_path_factory.mktemp("bert") / "checkpoint", "BertConfig", **BERT)
    options = Options(precisions=["fp32", "fp16"], targets=["cpu", "cuda", "tensorrt"], is_verified=False)
    return export(str(folder), folder.parent / "artifact", options)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_graphs_for_gpus_have_the_scores_of_the_cpu_s(gpu_artifact: Artifact, precision: Precision):
    questions = sample().questions
    passages = [" ".join(questions[0].passages), "the moon", questions[3].passages[0], ""]
    encoded = RowMaker.open(gpu_artifact).encode([(questions[0].query, passage) for passage in passages])
    with Reranker.load(gpu_artifact.folder, precision="fp32", prepare=False) as reranker:
        expected = reranker._scorer().backend.logits(encoded).last
    for logits in logits_on_gpus(gpu_artifact, encoded, precision):
        np.testing.assert_allclose(logits, expected, atol=TOLERANCES[precision], rtol=0)
    assert np.ptp(expected) > 0.3


@pytest.mark.parametrize("precision", TOLERANCES)
def test_graphs_for_gpus_have_operators_that_run_there(gpu_artifact: Artifact, precision: Precision):
    nodes = graph_of(gpu_artifact, f"cuda-{precision}").graph.node
    assert {(node.domain, node.op_type) for node in nodes} <= {*CUDA_KERNELS, ("", "Add")}
    nodes = graph_of(gpu_artifact, f"tensorrt-{precision}").graph.node
    assert {node.op_type for node in nodes} <= TENSORRT_OPERATORS
