"""ModernBERT beside transformers, and the chain of modules of Ettin's rerankers beside sentence-transformers."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rankrt import Reranker
from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import Precision
from rankrt.backends.batch import packed
from rankrt.backends.session import open_session, session_options
from rankrt.text.pairs import Encoded
from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.checkpoint.fields import read_config
from rankrt_export.checkpoint.head import Dense, Head, Norm
from rankrt_export.checkpoint.weights import open_weights
from rankrt_export.errors import CheckpointError
from rankrt_export.graph.blueprint import Blueprint
from rankrt_export.graph.data_files import DataFiles
from rankrt_export.graph.graph import Graph
from rankrt_export.pipeline import Options, export
from rankrt_export.precision.float32 import Float32
from rankrt_export.text.texts import sample
from tests.export.conftest import Make, change_config, checkpoint_of, torch, transformers, write_tokenizer
from tests.export.test_gpu_graphs import CUDA_KERNELS, TENSORRT_OPERATORS, graph_of, logits_on_gpus

pytestmark = pytest.mark.export

# Blocks of 16 tokens: rows of the sample have up to 30 of them.
SMALL: dict[str, Any] = {
    "num_hidden_layers": 5,
    "local_attention": 16,
    "cls_token_id": 0,
    "sep_token_id": 2,
    "max_position_embeddings": 2048,
}
SHAPES: dict[str, dict[str, Any]] = {
    "first token": {"classifier_pooling": "cls"},
    "mean": {"classifier_pooling": "mean"},
    "a window in the last layer": {"num_hidden_layers": 3},
    "one layer": {"num_hidden_layers": 1},
    "every layer sees the row": {"global_attn_every_n_layers": 1},
    "biases": {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True},
}


def of_transformers(folder: Path, encoded: Encoded) -> Float32Array:
    """Score rows one at a time, without padding."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [torch.tensor(encoded.row(i)[None].astype(np.int64)) for i in range(encoded.n_rows)]
    with torch.inference_mode():
        return np.array([model(row).logits[0, 0].item() for row in rows], np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(make_checkpoint: Make, tmp_path: Path, shape: str):
    folder, pairs = make_checkpoint("ModernBertConfig", **(SMALL | SHAPES[shape])), sample().pairs[::3]
    artifact = export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    assert artifact.manifest.variants[0].layout == "packed"
    with Reranker.load(artifact.folder, precision="fp32") as reranker:
        expected = of_transformers(folder, reranker.encode(pairs))
        # fp32: only the order of summation differs, in logits of up to 60.
        np.testing.assert_allclose(reranker.score(pairs), expected, atol=1e-4, rtol=2e-5)
    assert expected.std() > 0.5


def test_rows_of_every_length_around_the_edges_of_blocks(make_checkpoint: Make, tmp_path: Path):
    """Up to two blocks of 8 tokens a row is one block; then blocks begin, of which the last may have one token."""
    folder = make_checkpoint("ModernBertConfig", **(SMALL | {"local_attention": 8, "classifier_pooling": "mean"}))
    artifact = export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    chance = np.random.default_rng(0)
    encoded = Encoded.of_rows([chance.integers(4, 250, n, np.int32) for n in (1, 2, 4, 5, *range(7, 42), 64, 65, 200)])
    with Reranker.load(artifact.folder, precision="fp32", prepare=False) as reranker:
        found = reranker._scorer().backend.logits(encoded).last
    np.testing.assert_allclose(found, of_transformers(folder, encoded), atol=1e-4, rtol=2e-5)


def test_a_score_is_bitwise_the_same_in_every_company(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint("ModernBertConfig", **SMALL)
    export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    pairs = sample().pairs[::2]
    with (
        Reranker.load(tmp_path / "artifact", precision="fp32", n_threads=2) as two,
        Reranker.load(tmp_path / "artifact", precision="fp32", n_threads=1) as one,
        Reranker.load(tmp_path / "artifact", precision="fp32", n_threads=2, prepare=False) as wide,
    ):
        together = two.score(pairs).tobytes()
        assert np.concatenate([two.score([pair]) for pair in pairs]).tobytes() == together
        assert two.score(pairs[::-1])[::-1].tobytes() == together
        assert one.score(pairs).tobytes() == together
        assert wide.score(pairs).tobytes() == together


def test_fields_as_transformers_4_wrote_them(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint("ModernBertConfig", **SMALL)
    pairs = sample().pairs[:3]
    newer = export(str(folder), tmp_path / "newer", Options(is_verified=False))
    change_config(folder, layer_types=None, rope_parameters=None)
    change_config(folder, global_attn_every_n_layers=3, global_rope_theta=160000.0, local_rope_theta=10000.0)
    older = export(str(folder), tmp_path / "older", Options(is_verified=False))
    assert older.manifest.files == newer.manifest.files
    change_config(folder, global_rope_theta=500.0)
    other = export(str(folder), tmp_path / "other", Options(is_verified=False))
    with Reranker.load(other.folder, precision="fp32") as reranker:
        expected = of_transformers(folder, reranker.encode(pairs))
        np.testing.assert_allclose(reranker.score(pairs), expected, atol=1e-4, rtol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation = 'silu'; only 'gelu'"),
        ({"classifier_pooling": "max"}, "classifier_pooling = 'max'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "full_attention.rope_type = 'yarn'"),
        ({"rope_parameters": {"full_attention": 3}}, "full_attention = 3, expected an object"),
        ({"layer_types": ["full_attention"]}, "for each of 5 layers"),
        ({"local_attention": 1}, "local_attention"),
    ],
)
def test_what_is_not_implemented_is_named(make_checkpoint: Make, tmp_path: Path, changes: dict[str, Any], message: str):
    folder = make_checkpoint("ModernBertConfig", **SMALL)
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        export(str(folder), tmp_path / "artifact", Options(is_verified=False))


def test_every_precision_is_within_its_limits(make_checkpoint: Make, tmp_path: Path):
    """Random weights of this size amplify what 8 bits round away: they are allowed more than trained ones are."""
    precisions: list[Precision] = ["fp32", "fp16", "int8", "w8"]
    folder = make_checkpoint("ModernBertConfig", gain=3.0, **SMALL)
    artifact = export(str(folder), tmp_path / "artifact", Options(precisions=precisions, max_difference=2, min_tau=0.7))
    assert {variant.precision for variant in artifact.manifest.variants} == set(precisions)
    assert all(variant.verification is not None for variant in artifact.manifest.variants)


# Ettin's chain: the model, the first token, a layer with GELU, a norm, and a layer with one output.


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.filterwarnings("ignore")
def test_a_chain_of_modules_has_the_scores_of_sentence_transformers(tmp_path: Path, pooling: Any):
    pytest.importorskip("sentence_transformers")
    pairs = sample().pairs[::5]
    cross_encoder, head = ettin(tmp_path / "model", pooling)
    expected = cross_encoder.predict(pairs, batch_size=8, activation_fn=torch.nn.Identity())
    rows = [np.array(ids, np.int32) for ids in cross_encoder.tokenizer(pairs, truncation=True)["input_ids"]]
    found = scored(tmp_path / "model", head, Encoded.of_rows(rows))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=2e-5)
    assert expected.std() > 0.02  # 0.049 with transformers 4.57, whose weights are drawn in another order


def ettin(folder: Path, pooling: Any) -> tuple[Any, Head]:
    """Save an encoder without a head in a folder; return a CrossEncoder that has one, and the same head as values."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense as DenseModule
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    torch.manual_seed(0)
    shape = {"vocab_size": 400, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "pad_token_id": 1}
    model = transformers.ModernBertModel(transformers.ModernBertConfig(**(shape | SMALL)))
    for name, value in model.named_parameters():
        if value.ndim == 2 and "embed" not in name:
            value.data.mul_(6.0)
    model.save_pretrained(folder)
    write_tokenizer(folder, is_bert=False)
    inner = DenseModule(32, 32, bias=False, activation_function=torch.nn.GELU())
    norm = LayerNorm(32)
    torch.nn.init.normal_(norm.norm.weight, 1.0, 0.3)
    outer = DenseModule(32, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    modules = [Transformer(str(folder)), Pooling(32, pooling), inner, norm, outer]
    head = Head(
        pooling=pooling,
        layers=[
            Dense(weight=inner.linear.weight.detach().numpy(), activation="gelu"),
            Norm(scale=norm.norm.weight.detach().numpy(), bias=norm.norm.bias.detach().numpy()),
            Dense(weight=outer.linear.weight.detach().numpy(), bias=outer.linear.bias.detach().numpy()),
        ],
    )
    return CrossEncoder(modules=modules, device="cpu"), head


def scored(folder: Path, head: Head, encoded: Encoded) -> Float32Array:
    """Write the graph of a checkpoint with a head, and run it."""
    weights = open_weights(folder)
    with DataFiles(folder) as data:
        blueprint = Blueprint(
            config=read_config(folder / "config.json"),
            weights=weights,
            target="cpu",
            operators="cpu",
            readouts=[],
            max_length=512,
            new_graph=partial(Graph, weights=weights, data=data, precision=Float32()),
            head=head,
        )
        (section,) = ARCHITECTURES["ModernBertModel"](blueprint)
        section.graph.save(folder / "graph.onnx", **section.outputs)
    session = open_session(folder / "graph.onnx", session_options(1))
    feed = packed(encoded, np.arange(encoded.n_rows))
    declared = {node.name for node in session.get_inputs()}
    (logits,) = session.run(None, {name: array for name, array in feed.items() if name in declared})
    return np.asarray(logits, np.float32)


# GPUs.


@pytest.fixture(scope="module", params=["cls", "mean"])
def gpu_artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model whose blocks of 128 tokens hold several rows, and whose window is 16 tokens."""
    folder = tmp_path_factory.mktemp("modernbert") / "checkpoint"
    checkpoint_of(folder, "ModernBertConfig", gain=5.0, **SMALL, classifier_pooling=request.param)
    options = Options(precisions=["fp32", "fp16"], targets=["cpu", "cuda", "tensorrt"], is_verified=False)
    return export(str(folder), folder.parent / "artifact", options)


# fp32 differs by the order of summation, in logits of up to 10.
GPU_TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.1}


@pytest.mark.parametrize("precision", GPU_TOLERANCES)
def test_graphs_for_gpus_have_the_scores_of_the_cpu_s(gpu_artifact: Artifact, precision: Precision):
    chance = np.random.default_rng(0)
    encoded = Encoded.of_rows([chance.integers(4, 250, n, np.int32) for n in (1, 3, 200, 17, 129, 9, 40, 128, 5)])
    with Reranker.load(gpu_artifact.folder, precision="fp32", prepare=False) as reranker:
        expected = reranker._scorer().backend.logits(encoded).last
    for logits in logits_on_gpus(gpu_artifact, encoded, precision):
        np.testing.assert_allclose(logits, expected, atol=GPU_TOLERANCES[precision], rtol=0)
    assert np.ptp(expected) > 1


@pytest.mark.parametrize("precision", GPU_TOLERANCES)
def test_graphs_for_gpus_have_operators_that_run_there(gpu_artifact: Artifact, precision: Precision):
    nodes = graph_of(gpu_artifact, f"cuda-{precision}").graph.node
    assert {(node.domain, node.op_type) for node in nodes} <= {*CUDA_KERNELS, *WINDOW_KERNELS}
    assert {node.op_type for node in graph_of(gpu_artifact, f"tensorrt-{precision}").graph.node} <= {
        *TENSORRT_OPERATORS,
        *WINDOW_OPERATORS,
    }


@pytest.mark.parametrize("name", ["tensorrt-fp32", "tensorrt-fp16", "cuda-fp32", "cuda-fp16"])
def test_a_graph_is_valid_and_its_types_can_be_inferred(gpu_artifact: Artifact, name: str):
    onnx.checker.check_model(gpu_artifact.path(f"{name}.onnx"), full_check=name.startswith("tensorrt"))
    onnx.shape_inference.infer_shapes(graph_of(gpu_artifact, name), check_type=True, strict_mode=True, data_prop=True)


# Of ONNX Runtime's CUDA provider, with int32 where they count (docs/OperatorKernels.md).
WINDOW_KERNELS = {
    *(("", name) for name in ("Add", "And", "Equal", "Gelu", "LayerNormalization", "Max", "Min", "Mul", "Squeeze")),
    *(("", name) for name in ("Sub", "Unsqueeze", "Where")),
    *(("com.microsoft", name) for name in ("MultiHeadAttention", "RotaryEmbedding")),
}
# Of TensorRT's ONNX parser (onnx-tensorrt, docs/operators.md, of TensorRT 10.15).
WINDOW_OPERATORS = {"And", "Concat", "Div", "ReduceSum", "Slice", "Sub"}
