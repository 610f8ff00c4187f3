"""The graphs for GPUs, as far as a CPU can tell: their scores, their operators, their types. No GPU is needed."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rankrt import Reranker
from rankrt.arrays import Float32Array, Int64Array
from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import Precision
from rankrt.backends.batch import padded, varlen
from rankrt.backends.session import import_onnxruntime
from rankrt.text.pairs import Encoded
from rankrt_export.errors import VerificationError
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.tensorrt_on_cpu import GraphOnCpu, rounded
from tests.export.conftest import Make
from tests.export.contrib import evaluator

pytestmark = pytest.mark.export

CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny_reranker" / "checkpoint"
N_LAYERS = 3
CPU = ["CPUExecutionProvider"]
# fp32 differs by the order of summation: 1e-5 was measured. fp16 rounds every state to 11 bits: 0.045, where logits are
# from -9 to 9.
TOLERANCES: dict[Precision, float] = {"fp32": 5e-5, "fp16": 0.1}
# TensorRT's ONNX parser takes these, with int32 where they count (onnx-tensorrt, docs/operators.md, of TensorRT 10.15).
TENSORRT_OPERATORS = {
    "Add",
    "Cast",
    "Concat",
    "Gather",
    "Gelu",
    "Gemm",
    "LayerNormalization",
    "Less",
    "MatMul",
    "Mul",
    "Range",
    "Reshape",
    "Shape",
    "Slice",
    "Softmax",
    "Squeeze",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
}
# Operators of the CUDA provider, and the types that they take there (ONNX Runtime, docs/OperatorKernels.md).
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
CUDA_KERNELS = {
    ("", "Cast"): _FLOATS,
    ("", "Concat"): _FLOATS,
    ("", "Gather"): _FLOATS,
    ("", "Gemm"): _FLOATS,
    ("", "Reshape"): _FLOATS,
    ("", "Slice"): {TensorProto.INT32, TensorProto.INT64},
    ("", "Tanh"): _FLOATS,
    ("com.microsoft", "BiasGelu"): _FLOATS,
    ("com.microsoft", "PackedMultiHeadAttention"): _FLOATS,
    ("com.microsoft", "SkipLayerNormalization"): _FLOATS,
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    options = Options(precisions=["fp32", "fp16"], targets=["cpu", "cuda", "tensorrt"], is_verified=False)
    return export(str(CHECKPOINT), tmp_path_factory.mktemp("gpu") / "artifact", options)


@pytest.fixture(scope="module")
def encoded(artifact: Artifact) -> Encoded:
    """Rows from 8 to 400 tokens, in no order of length."""
    questions = sample().questions
    passages = [" ".join(questions[0].passages), "the moon", questions[3].passages[0], "", questions[10].passages[2]]
    return RowMaker.open(artifact).encode([(questions[0].query, passage) for passage in passages])


@pytest.fixture(scope="module")
def expected(artifact: Artifact, encoded: Encoded) -> Float32Array:
    """What the CPU's fp32 graph, which is verified against PyTorch, makes of the rows."""
    with Reranker.load(artifact.folder, precision="fp32", prepare=False) as reranker:
        return reranker._scorer().backend.logits(encoded).last


def variant_of(artifact: Artifact, name: str) -> Variant:
    return next(variant for variant in artifact.manifest.variants if variant.name == name)


def logits_on_gpus(artifact: Artifact, encoded: Encoded, precision: Precision) -> list[Float32Array]:
    """Return the logits of the graphs for TensorRT and for CUDA, as a CPU computes them."""
    every, rows = every_row(encoded), RowMaker.open(artifact)
    for_tensorrt = GraphOnCpu(artifact, variant_of(artifact, f"tensorrt-{precision}"), rows)
    for_cuda = evaluator(str(artifact.path(f"cuda-{precision}.onnx")))
    return [for_tensorrt.run(padded(encoded, every)), for_cuda.run(None, dict(varlen(encoded, every)))[0]]


def graph_of(artifact: Artifact, name: str) -> onnx.ModelProto:
    return onnx.load(artifact.path(variant_of(artifact, name).graph), load_external_data=False)


def every_row(encoded: Encoded) -> Int64Array:
    return np.arange(encoded.n_rows)


# Scores.


@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_graph_for_tensorrt_has_the_scores_of_the_cpu_s(
    artifact: Artifact, encoded: Encoded, expected: Float32Array, precision: Precision
):
    graph = GraphOnCpu(artifact, variant_of(artifact, f"tensorrt-{precision}"), RowMaker.open(artifact))
    logits = graph.run(padded(encoded, every_row(encoded)))
    np.testing.assert_allclose(logits, expected, atol=TOLERANCES[precision], rtol=0)
    assert np.ptp(expected) > 1


@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_cpu_provider_takes_the_file_as_it_is(
    artifact: Artifact, encoded: Encoded, expected: Float32Array, precision: Precision
):
    session = import_onnxruntime().InferenceSession(str(artifact.path(f"tensorrt-{precision}.onnx")), providers=CPU)
    feed = padded(encoded, every_row(encoded))
    (logits,) = session.run(None, {node.name: feed[node.name] for node in session.get_inputs()})
    np.testing.assert_allclose(logits, expected, atol=TOLERANCES[precision], rtol=0)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_packed_graph_has_the_scores_of_the_cpu_s(
    artifact: Artifact, encoded: Encoded, expected: Float32Array, precision: Precision
):
    graph = evaluator(str(artifact.path(f"cuda-{precision}.onnx")))
    (logits,) = graph.run(None, varlen(encoded, every_row(encoded)))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=TOLERANCES[precision], rtol=0)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_score_does_not_depend_on_what_rows_are_filled_up_with(
    artifact: Artifact, encoded: Encoded, precision: Precision
):
    graph = GraphOnCpu(artifact, variant_of(artifact, f"tensorrt-{precision}"), RowMaker.open(artifact))
    feed = padded(encoded, every_row(encoded))
    is_filled_up = np.arange(feed["input_ids"].shape[1]) >= feed["lengths"][:, None]
    garbage = np.where(is_filled_up, np.random.RandomState(0).randint(0, 24000, is_filled_up.shape), feed["input_ids"])
    assert graph.run(feed | {"input_ids": garbage.astype(np.int32)}).tobytes() == graph.run(feed).tobytes()


def test_rows_of_one_length_score_as_they_do_among_longer_ones(artifact: Artifact, encoded: Encoded):
    graph = GraphOnCpu(artifact, variant_of(artifact, "tensorrt-fp32"), RowMaker.open(artifact))
    together = graph.run(padded(encoded, every_row(encoded)))
    alone = [graph.run(padded(encoded, np.array([row])))[0] for row in range(encoded.n_rows)]
    np.testing.assert_allclose(alone, together, atol=TOLERANCES["fp32"], rtol=0)


# Operators and types.


@pytest.mark.parametrize("name", ["tensorrt-fp32", "tensorrt-fp16", "cuda-fp32", "cuda-fp16"])
def test_a_graph_is_valid_and_its_types_can_be_inferred(artifact: Artifact, name: str):
    onnx.checker.check_model(artifact.path(f"{name}.onnx"), full_check=name.startswith("tensorrt"))
    onnx.shape_inference.infer_shapes(graph_of(artifact, name), check_type=True, strict_mode=True, data_prop=True)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_tensorrt_s_parser_takes_every_operator(artifact: Artifact, precision: Precision):
    nodes = graph_of(artifact, f"tensorrt-{precision}").graph.node
    assert {node.domain for node in nodes} == {""}
    assert {node.op_type for node in nodes} <= TENSORRT_OPERATORS


def test_half_precision_for_tensorrt_normalises_and_attends_in_fp32(artifact: Artifact):
    types, nodes = inferred(graph_of(artifact, "tensorrt-fp16"))
    of = {kind: {types[node.output[0]] for node in nodes if node.op_type == kind} for kind in TENSORRT_OPERATORS}
    assert of["LayerNormalization"] == of["Softmax"] == of["Gemm"] == {TensorProto.FLOAT}
    assert of["MatMul"] == of["Gelu"] == {TensorProto.FLOAT16}


@pytest.mark.parametrize("precision", TOLERANCES)
def test_cuda_has_a_kernel_for_every_operator(artifact: Artifact, precision: Precision):
    """ONNX Runtime checks the types by its own schemas when it loads a graph, before it looks for kernels."""
    model = graph_of(artifact, f"cuda-{precision}")
    assert {(node.domain, node.op_type) for node in model.graph.node} == set(CUDA_KERNELS) - (
        {("", "Cast")} if precision == "fp32" else {("", "Concat")}  # of panels, which only fp32 has
    )
    stored = {tensor.data_type for tensor in model.graph.initializer}
    assert stored - {TensorProto.INT64} <= _FLOATS
    with pytest.raises(Exception, match=r"(implementation|kernel) for \S*PackedMultiHeadAttention"):
        import_onnxruntime().InferenceSession(str(artifact.path(f"cuda-{precision}.onnx")), providers=CPU)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_attention_for_cuda_has_no_bias_so_that_flash_attention_is_chosen(artifact: Artifact, precision: Precision):
    nodes = graph_of(artifact, f"cuda-{precision}").graph.node
    counts = Counter(node.op_type for node in nodes)
    assert counts["PackedMultiHeadAttention"] == counts["BiasGelu"] == N_LAYERS
    assert counts["SkipLayerNormalization"] == 2 * N_LAYERS + 1
    for node in nodes:
        if node.op_type == "PackedMultiHeadAttention":
            assert list(node.input)[3:] == ["", "token_offset", "row_offsets"]


def test_no_product_of_half_precision_adds_a_bias_for_cuda(artifact: Artifact):
    """Each would cost two passes. The two layers of the head are in fp32."""
    nodes = graph_of(artifact, "cuda-fp16").graph.node
    assert sum(len(node.input) == 3 for node in nodes if node.op_type == "Gemm") == 2


def test_a_query_keeps_its_bias_where_a_norm_does_not_bear_it(make_checkpoint: Make, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    folder = make_checkpoint()
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if name.endswith("LayerNorm.weight")]:
        weights[name][3] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    options = Options(precisions=["fp32", "fp16"], targets=["cpu", "cuda"], is_verified=False)
    artifact = export(str(folder), tmp_path / "artifact", options)
    n_layers = sum(node.op_type == "BiasGelu" for node in graph_of(artifact, "cuda-fp16").graph.node)
    with_bias = [n for n in graph_of(artifact, "cuda-fp16").graph.node if n.op_type == "Gemm" and len(n.input) == 3]
    assert len(with_bias) == n_layers + 2
    encoded = RowMaker.open(artifact).encode(sample().pairs[:3])
    (logits,) = evaluator(str(artifact.path("cuda-fp16.onnx"))).run(None, varlen(encoded, every_row(encoded)))
    with Reranker.load(artifact.folder, precision="fp32", prepare=False) as reranker:
        exact = reranker._scorer().backend.logits(encoded).last
    np.testing.assert_allclose(logits, exact, atol=TOLERANCES["fp16"], rtol=0)


def test_behind_the_last_attention_only_first_tokens_are_computed(artifact: Artifact):
    model = onnx.shape_inference.infer_shapes(graph_of(artifact, "tensorrt-fp32"), data_prop=True)
    shapes = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.value_info}
    gelus = [shapes[node.output[0]] for node in model.graph.node if node.op_type == "Gelu"]
    assert gelus == [3] * (N_LAYERS - 1) + [2]


def test_variants_for_gpus_share_the_weights_of_the_cpu_s(artifact: Artifact):
    shared = {"layers.fp16.data", "embeddings.fp16.data", "common.data"}
    for name in ("cpu-fp16", "cuda-fp16", "tensorrt-fp16"):
        assert shared <= set(variant_of(artifact, name).data)
    assert variant_of(artifact, "cuda-fp32").data == variant_of(artifact, "cpu-fp32").data


def inferred(model: onnx.ModelProto) -> tuple[dict[str, int], list[onnx.NodeProto]]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    return types, list(graph.node)


# Large numbers.


def test_a_result_that_half_precision_cannot_hold_is_infinite_on_the_cpu_too():
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["once"]),
        helper.make_node("MatMul", ["once", "w"], ["twice"]),
        helper.make_node("Cast", ["twice"], ["y"], to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y"))
    weight = numpy_helper.from_array(np.array([[300]], np.float16), "w")
    graph = helper.make_graph(nodes, "products", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = import_onnxruntime().InferenceSession(rounded(model).SerializeToString(), providers=CPU)
    ones = np.ones((1, 1), np.float32)
    assert session.run(None, {"x": ones / 2})[0] == np.float16(45000)
    assert session.run(None, {"x": 3 * ones})[0] == np.inf


@pytest.fixture
def make_outliers(make_checkpoint: Make) -> Make:
    """A checkpoint whose feed-forward gives one feature a large bias, or large numbers altogether."""
    from safetensors.numpy import load_file, save_file

    def make(*, bias: float = 0.0, factor: float = 1.0) -> Path:
        folder = make_checkpoint()
        weights = load_file(folder / "model.safetensors")
        for name in [name for name in weights if name.endswith(".output.dense.bias") and "attention" not in name]:
            weights[name][5] += bias
            weights[name.replace("bias", "weight")] *= factor
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def test_states_that_are_large_but_can_be_held_do_not_overflow_in_a_norm(make_outliers: Make, tmp_path: Path):
    options = Options(precisions=["fp16"], targets=["cuda", "tensorrt"], max_difference=9.0, min_tau=-1.0)
    artifact = export(str(make_outliers(bias=30000.0)), tmp_path / "artifact", options)
    assert variant_of(artifact, "tensorrt-fp16").verification is not None
    encoded = RowMaker.open(artifact).encode(sample().pairs[:2])
    (logits,) = evaluator(str(artifact.path("cuda-fp16.onnx"))).run(None, varlen(encoded, every_row(encoded)))
    assert np.isfinite(logits).all()


def test_a_model_whose_states_half_precision_cannot_hold_is_not_written(make_outliers: Make, tmp_path: Path):
    folder, options = str(make_outliers(factor=60000.0)), Options(precisions=["fp16"], targets=["tensorrt"])
    with pytest.raises(VerificationError, match=r"tensorrt-fp16 answered (nan|-?inf) for pair .* nothing was written"):
        export(folder, tmp_path / "artifact", options)
    assert not (tmp_path / "artifact").exists()
