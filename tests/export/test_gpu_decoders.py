"""The graphs of decoders for GPUs, as far as a CPU can tell: their scores, their operators, their types."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from rankrt import InputError, Reranker
from rankrt.arrays import Float32Array, Int32Array
from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import Precision
from rankrt.backends.batch import padded
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.loading.choose import place_variant
from rankrt.loading.prepare import prepare_for_gpu
from rankrt.text.pairs import Encoded, Pair
from rankrt_export.job import job
from rankrt_export.pipeline import Options, export
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.tensorrt_on_cpu import GraphOnCpu
from tests.export.contrib import evaluator
from tests.export.decoders import make_decoder, make_layerwise, make_lightweight
from tests.export.test_decoder import few_texts
from tests.export.test_gpu_graphs import CUDA_KERNELS, TENSORRT_OPERATORS, graph_of, inferred, variant_of
from tests.export.test_overflow import change_weights
from tests.runtime.gpus import compute_on_the_cpu

pytestmark = pytest.mark.export

PAIRS: list[Pair] = [
    *[("why does the tide rise?", f"{text} of the moon " * n) for n, text in enumerate(["", "pull", "light", "age"])],
    ("who?", "me"),
    ("alone", "with one passage " * 20),
]
# fp32 differs by the order of summation. fp16 rounds every state between the layers' sums to 11 bits.
TOLERANCES: dict[Precision, float] = {"fp32": 2e-4, "fp16": 0.25}
# Of TensorRT's parser besides those that encoders have.
OPERATORS = TENSORRT_OPERATORS | {
    "And", "Concat", "Div", "GatherND", "LessOrEqual", "ReduceMean", "Sigmoid", "Slice", "Sqrt", "Sub", "Tanh", "Tile"
}  # fmt: skip
# ONNX Runtime, docs/OperatorKernels.md.
KERNELS = {*CUDA_KERNELS} | {
    ("", "Add"), ("", "GatherND"), ("", "Gelu"), ("", "MatMul"), ("", "Mul"), ("", "SimplifiedLayerNormalization"),
    ("", "Squeeze"), ("", "Sub"), ("", "Tile"), ("", "Unsqueeze"), ("com.microsoft", "FusedMatMul"),
    ("com.microsoft", "MultiHeadAttention"), ("com.microsoft", "QuickGelu"), ("com.microsoft", "RotaryEmbedding"),
}  # fmt: skip
# Of attention with windows or bounds. None of them computes a shape.
PLAIN_KERNELS = {
    ("", name) for name in ("And", "CumSum", "Div", "Less", "LessOrEqual", "Softmax", "Transpose", "Where")
}
# The families that differ: shared keys and a shift; windows and bounds; biases; norms of heads; scales and several
# exits; windows without bounds.
MAKERS: dict[str, Callable[[Path], Path]] = {
    **{family: partial(make_decoder, family=family) for family in ("Gemma", "Qwen2", "Qwen3")},
    "Gemma2": partial(make_decoder, family="Gemma2", final_logit_softcapping=30.0),
    "MiniCPM": make_layerwise,
    "CostWiseGemma": make_lightweight,
}
# How many layers there are in which attention has no window and no bound.
UNBOUNDED_LAYERS = {"Gemma": 3, "Gemma2": 0, "Qwen2": 3, "Qwen3": 3, "LayerWiseMiniCPM": 6, "CostWiseGemma": 3}


@pytest.fixture(scope="module", params=MAKERS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp(request.param)
    # Of a few texts two scores may be so near that fp16 exchanges them.
    options = Options(precisions=["fp32", "fp16"], targets=["cpu", "cuda", "tensorrt"], min_tau=-1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "sample", few_texts)
        return export(str(MAKERS[request.param](folder / "checkpoint")), folder / "artifact", options)


@pytest.fixture(scope="module")
def encoded(artifact: Artifact) -> Encoded:
    return RowMaker.open(artifact).encode(PAIRS)


@pytest.fixture(scope="module")
def expected(artifact: Artifact) -> Float32Array:
    """What the CPU's fp32 graphs, which are verified against PyTorch, make of the pairs."""
    length = RowMaker.open(artifact).rules.max_length
    with Reranker.load(artifact.folder, device="cpu", precision="fp32", max_length=length, prepare=False) as reranker:
        logits = reranker.score(PAIRS)
    assert logits.std() > 0.1
    return logits


def on_tensorrt(artifact: Artifact, precision: Precision) -> GraphOnCpu:
    return GraphOnCpu(artifact, variant_of(artifact, f"tensorrt-{precision}"), RowMaker.open(artifact))


def rows_of(encoded: Encoded) -> dict[str, Int32Array]:
    return padded(encoded, np.arange(encoded.n_rows))


@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_graph_for_tensorrt_has_the_scores_of_the_cpu_s(
    artifact: Artifact, expected: Float32Array, precision: Precision
):
    scores = on_tensorrt(artifact, precision).score(PAIRS)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCES[precision], rtol=0)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_the_graph_for_cuda_has_the_scores_of_the_cpu_s(
    artifact: Artifact, encoded: Encoded, expected: Float32Array, precision: Precision
):
    graph = variant_of(artifact, f"cuda-{precision}").graph
    (logits,) = evaluator(str(artifact.path(graph))).run(None, rows_of(encoded))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=TOLERANCES[precision], rtol=0)


def test_a_score_does_not_depend_on_what_rows_are_filled_up_with(artifact: Artifact, encoded: Encoded):
    graph, feed = on_tensorrt(artifact, "fp32"), rows_of(encoded)
    is_filled_up = np.arange(feed["input_ids"].shape[1]) >= feed["lengths"][:, None]
    garbage = np.where(is_filled_up, 7, feed["input_ids"]).astype(np.int32)
    assert graph.run(feed | {"input_ids": garbage}).tobytes() == graph.run(feed).tobytes()


def test_a_row_scores_alone_as_it_does_among_longer_ones(artifact: Artifact, encoded: Encoded):
    graph = on_tensorrt(artifact, "fp32")
    alone = [graph.run(padded(encoded, np.array([row])))[0] for row in range(encoded.n_rows)]
    np.testing.assert_allclose(alone, graph.run(rows_of(encoded)), atol=TOLERANCES["fp32"], rtol=0)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_every_operator_is_one_that_its_engine_has(artifact: Artifact, precision: Precision):
    for_tensorrt = graph_of(artifact, f"tensorrt-{precision}").graph.node
    assert {(node.domain, node.op_type) for node in for_tensorrt} <= {("", name) for name in OPERATORS}
    for_cuda = graph_of(artifact, f"cuda-{precision}").graph.node
    is_plain = "Gemma2" in artifact.manifest.architecture or "CostWise" in artifact.manifest.architecture
    assert {(node.domain, node.op_type) for node in for_cuda} <= KERNELS | (PLAIN_KERNELS if is_plain else set())


def test_attention_for_cuda_has_neither_mask_nor_bias_so_that_flash_attention_is_chosen(artifact: Artifact):
    """Layers with windows or bounds, which that attention lacks, are written in plain operators."""
    nodes = graph_of(artifact, "cuda-fp16").graph.node
    attentions = [node for node in nodes if node.op_type == "MultiHeadAttention"]
    assert len(attentions) == UNBOUNDED_LAYERS[artifact.manifest.architecture.removesuffix("ForCausalLM")]
    assert all(len(node.input) == 3 for node in attentions)


def test_half_precision_for_tensorrt_sums_layers_and_normalises_in_fp32(artifact: Artifact):
    types, nodes = inferred(graph_of(artifact, "tensorrt-fp16"))
    of = {kind: {types[node.output[0]] for node in nodes if node.op_type == kind} for kind in OPERATORS}
    assert of["ReduceMean"] == of["Softmax"] == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 in of["MatMul"]


def test_types_and_shapes_can_be_inferred(artifact: Artifact):
    for precision in TOLERANCES:
        model = graph_of(artifact, f"tensorrt-{precision}")
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def test_a_graph_for_a_gpu_ends_behind_the_last_exit(artifact: Artifact):
    variants = {variant.name: variant for variant in artifact.manifest.variants}
    last = variants["cpu-fp32"].exits[-1].layer
    for name in ("cuda-fp16", "tensorrt-fp16"):
        assert variants[name].layout == "padded"
        assert [end.layer for end in variants[name].exits] == [last]
    assert verified(variants["tensorrt-fp32"]) < 1e-3
    assert verified(variants["tensorrt-fp16"]) < TOLERANCES["fp16"]


def test_a_reranker_on_a_gpu_gives_the_scores_and_the_order_of_one_on_a_cpu(
    artifact: Artifact, expected: Float32Array, monkeypatch: pytest.MonkeyPatch
):
    """The CPU provider has all operators of the graph for CUDA in fp32, so it takes the GPU's place."""
    compute_on_the_cpu(monkeypatch, "A GPU")
    length = RowMaker.open(artifact).rules.max_length
    with Reranker.load(artifact.folder, device="cuda", precision="fp32", max_length=length) as reranker:
        last = reranker.variant.exits[-1].layer
        np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=TOLERANCES["fp32"], rtol=0)
        assert reranker.score(PAIRS, cutoff_layers=[last]).tolist() == [reranker.score(PAIRS).tolist()]
        ranking = reranker.rank(PAIRS[0][0], [passage for _, passage in PAIRS[:4]])
        assert [hit.index for hit in ranking.hits] == np.argsort(-expected[:4], kind="stable").tolist()
        with pytest.raises(InputError, match=f"cutoff layer 1: cuda-fp32 was exported with {last}; .* for a GPU ends"):
            reranker.with_cutoff(1)
        with pytest.raises(InputError, match="progressive needs a layerwise model with an exit before the last"):
            reranker.rank("who?", ["me", "you"], top_n=1, progressive=True)


def test_a_build_compares_a_decoder_s_examples(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compute_on_the_cpu(monkeypatch, "A GPU")
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path))
    variant = variant_of(artifact, "cuda-fp32")
    built = prepare_for_gpu(place_variant(artifact, variant, Device("cuda"), this_host()))
    assert built.n_examples == len(artifact.manifest.examples) > 0
    assert built.max_difference < 1e-3


def test_variants_for_gpus_share_the_weights_of_the_cpu_s(artifact: Artifact):
    for name in ("cpu-fp16", "cuda-fp16", "tensorrt-fp16"):
        assert {"layers.fp16.data", "embeddings.fp16.data"} <= set(variant_of(artifact, name).data)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_decoder_is_quantized_for_tensorrt_as_an_encoder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
):
    monkeypatch.setattr(job, "sample", few_texts)
    options = Options(precisions=["fp32", precision], targets=["cpu", "tensorrt"], max_difference=1.0, min_tau=-1.0)
    artifact = export(str(make_decoder(tmp_path / "checkpoint", "Gemma")), tmp_path / "artifact", options)
    variant = variant_of(artifact, f"tensorrt-{precision}")
    assert verified(variant) < 1.0
    assert variant.quantization is not None
    assert variant.quantization.int8_share > 0.5


def test_sums_of_layers_that_half_precision_cannot_hold_are_held_on_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each state fits: MiniCPM multiplies its embeddings by 12, and layers add to that."""
    monkeypatch.setattr(job, "sample", few_texts)
    checkpoint = make_layerwise(tmp_path / "checkpoint")
    change_weights(checkpoint, "embed_tokens.weight", lambda tensor: tensor / tensor.abs().max() * 60_000)
    options = Options(precisions=["fp16"], targets=["cpu", "cuda", "tensorrt"], max_difference=0.5, min_tau=-1.0)
    artifact = export(str(checkpoint), tmp_path / "artifact", options)
    assert verified(variant_of(artifact, "tensorrt-fp16")) < 0.5
    encoded = RowMaker.open(artifact).encode(PAIRS)
    graph = artifact.path(variant_of(artifact, "cuda-fp16").graph)
    assert np.isfinite(evaluator(str(graph)).run(None, rows_of(encoded))[0]).all()


def verified(variant: Variant) -> float:
    assert variant.verification is not None
    return variant.verification.max_difference
