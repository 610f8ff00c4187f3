"""8 bits for TensorRT: the arithmetic, the graph that says it, and that a CPU finds in it what calibration foresaw."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import VariantKey
from rankrt.backends.batch import padded
from rankrt.backends.session import gpu_session_options, import_onnxruntime
from rankrt.backends.tensorrt_engines import open_tensorrt
from rankrt.cli.main import main
from rankrt.host.device import Device
from rankrt.text.pairs import Encoded
from rankrt_export.errors import VerificationError
from rankrt_export.graph.data_files import DataFiles
from rankrt_export.graph.graph import FLOAT, HALF, Graph
from rankrt_export.pipeline import Options, export
from rankrt_export.precision.int8_numbers import weight_scales
from rankrt_export.precision.qdq import Qdq
from rankrt_export.precision.qdq_scales import FP8, INT8, FixedRecipe, Format, fixed_recipes, half
from rankrt_export.precision.recipes import Recipe
from rankrt_export.text.texts import parse, sample
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.tensorrt_on_cpu import GraphOnCpu, rounded
from tests.export.conftest import Make, assert_more_is_kept_for_less_drift
from tests.export.test_gpu_graphs import CHECKPOINT, TENSORRT_OPERATORS, graph_of, inferred, variant_of
from tests.export.test_int8 import _OneWeight, random_rows
from tests.runtime.gpus import compute_on_the_cpu

pytestmark = pytest.mark.export

FORMATS = [INT8, FP8]
LAYERS_OF_A_BLOCK = 6
N_LAYERS = 3


def halves(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


def outlying(n_rows: int, n_features: int) -> np.ndarray:
    """Activations of which two channels are far larger than the others."""
    x = random_rows(n_rows, n_features)
    x[:, [3, 17]] *= 30
    return halves(x)


# The arithmetic.


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_beyond_the_ends_becomes_the_ends(format_: Format):
    found = format_.quantize(np.array([-1e9, -0.0, 1e9], np.float32)).astype(np.float32)
    assert found.tolist() == [format_.lowest, 0, format_.highest]


def test_halves_between_two_integers_become_even_as_tensorrt_has_it():
    assert INT8.quantize(np.array([0.5, 1.5, -2.5, 126.5], np.float32)).tolist() == [0, 2, -2, 126]


@pytest.mark.parametrize("format_", FORMATS)
def test_scales_are_numbers_of_half_precision_and_never_zero(format_: Format):
    weight = random_rows(8, 32)
    weight[2] = 0
    x = outlying(40, 32)
    (recipe,) = fixed_recipes(format_, [weight], np.abs(x).max(axis=0), x)
    for values in (recipe.scales, recipe.step, recipe.factors):
        if values is not None:
            assert np.array_equal(halves(np.asarray(values)), values)
            assert np.all(np.asarray(values) > 0)
    assert not recipe.weights(weight)[2].any()


def test_outlier_channels_move_into_the_weights():
    x, weight = outlying(64, 32), random_rows(16, 32, seed=1)
    (recipe,) = fixed_recipes(INT8, [weight], np.abs(x).max(axis=0), x)
    plain = FixedRecipe(format=INT8, factors=None, step=half(np.abs(x).max() / 127), scales=half(weight_scales(weight)))
    assert recipe.factors is not None
    assert _error(recipe, x, weight) < 0.3 * _error(plain, x, weight)


def test_one_token_s_outlier_is_cut_off_where_that_makes_the_others_finer():
    x, weight = halves(random_rows(200, 32)), random_rows(16, 32, seed=1)
    largest = np.abs(x).max(axis=0)
    largest[:] = 3 * largest.max()  # seen once, in a row that is not among those sampled
    (recipe,) = fixed_recipes(INT8, [weight], largest, x)
    assert recipe.factors is None or recipe.step < 0.5 * largest.max() / 127
    plain = FixedRecipe(format=INT8, factors=None, step=half(largest.max() / 127), scales=recipe.scales)
    assert _error(recipe, x, weight) < _error(plain, x, weight)


def _error(recipe: FixedRecipe, x: np.ndarray, weight: np.ndarray) -> float:
    return float(((recipe.round(x) @ recipe.weights(weight).T - x @ weight.T) ** 2).mean())


# One layer in a graph.


def layer_graph(folder: Path, weight: np.ndarray, recipe: FixedRecipe) -> onnx.ModelProto:
    """A graph of one layer, for activations in fp32 that half precision has, (n_rows, n_tokens, n_in)."""
    key = VariantKey(target="tensorrt", precision="int8")
    of_layer = Recipe(key=key, layers={"layer": recipe}, tables={}, kept=(), share=1.0, text_sha256="0" * 64)
    with DataFiles(folder) as data:
        graph = Graph(weights=_OneWeight(weight), data=data, precision=Qdq(of_layer))  # type: ignore[arg-type]
        x = graph.op("Cast", graph.input("x", FLOAT, ["n_rows", "n_tokens", weight.shape[1]]), to=HALF)
        graph.save(folder / "layer.onnx", y=graph.as_float32(graph.product(x, "layer")))
    return onnx.load(folder / "layer.onnx")


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("has_factors", [True, False])
def test_a_layer_computes_what_its_recipe_says_to_the_last_bit(tmp_path: Path, format_: Format, has_factors: bool):
    x, weight = outlying(24, 32), random_rows(16, 32, seed=1)
    factors = halves(1 / np.abs(x).max(axis=0)) if has_factors else None
    (found,) = fixed_recipes(format_, [weight], np.abs(x).max(axis=0) / 3, x)  # so that some are beyond the ends
    recipe = replace(found, factors=factors, step=half(0.5 / format_.highest) if has_factors else found.step)
    model = layer_graph(tmp_path, weight, recipe)
    (of_x, of_weight) = (node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear")
    activations, weights = computed(model, {"x": x[None]}, [of_x, of_weight])
    multiplied = x if factors is None else halves(x * factors)
    steps = format_.quantize(np.asarray(multiplied / recipe.step, np.float32)).astype(np.float32)
    assert np.abs(steps).max() == format_.highest or steps.min() == format_.lowest
    assert np.array_equal(activations[0], (steps * recipe.step).astype(np.float16))
    assert np.array_equal(weights, recipe.weights(weight).T.astype(np.float16))


def computed(model: onnx.ModelProto, feed: dict[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    """Run a graph as it is proved, and return some values between."""
    proved = rounded(model)
    for name in names:
        proved.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT16, None))
    options = import_onnxruntime().SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = import_onnxruntime().InferenceSession(proved.SerializeToString(), options, ["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(names, feed)
    return found


# The graph of a model.


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    options = Options(precisions=["fp32", "int8", "fp8"], targets=["tensorrt"])
    return export(str(CHECKPOINT), tmp_path_factory.mktemp("explicit") / "artifact", options)


@pytest.fixture(scope="module")
def encoded(artifact: Artifact) -> Encoded:
    return RowMaker.open(artifact).encode(sample().pairs[:12])


NAMES = ["tensorrt-int8", "tensorrt-fp8"]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_within_the_limit_that_was_asked_for(artifact: Artifact, name: str):
    variant = variant_of(artifact, name)
    assert variant.verification is not None
    assert variant.verification.max_difference <= 0.25
    assert variant.verification.mean_tau >= 0.97
    assert variant.quantization is not None
    assert variant.quantization.int8_share >= 0.25


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_is_valid_its_types_can_be_inferred_and_tensorrt_s_parser_takes_every_operator(
    artifact: Artifact, name: str
):
    onnx.checker.check_model(artifact.path(f"{name}.onnx"), full_check=True)
    model = graph_of(artifact, name)
    assert {node.domain for node in model.graph.node} == {""}
    assert {node.op_type for node in model.graph.node} <= {*TENSORRT_OPERATORS, "QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("name", NAMES)
def test_between_the_layers_all_is_half_precision_and_norms_and_softmax_are_single(artifact: Artifact, name: str):
    types, nodes = inferred(graph_of(artifact, name))
    of = {
        kind: {types[node.output[0]] for node in nodes if node.op_type == kind} for kind in {n.op_type for n in nodes}
    }
    assert of["QuantizeLinear"] == {TensorProto.INT8 if name.endswith("int8") else TensorProto.FLOAT8E4M3FN}
    assert of["DequantizeLinear"] == of["MatMul"] == of["Gelu"] == {TensorProto.FLOAT16}
    assert of["LayerNormalization"] == of["Softmax"] == of["Gemm"] == {TensorProto.FLOAT}


@pytest.mark.parametrize("name", NAMES)
def test_every_product_in_8_bits_has_a_pair_of_its_own_and_every_kept_layer_none(artifact: Artifact, name: str):
    quantization = variant_of(artifact, name).quantization
    assert quantization is not None
    n_quantized = N_LAYERS * LAYERS_OF_A_BLOCK - len(quantization.kept)
    assert pairs_before_products(graph_of(artifact, name)) == n_quantized


@pytest.mark.parametrize("name", NAMES)
def test_tensorrt_gets_every_pair_from_onnx_runtime(
    artifact: Artifact, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compute_on_the_cpu(monkeypatch, "A GPU")
    monkeypatch.setattr("rankrt.backends.gpu.gpu_session_options", partial(_saving, tmp_path / "placed.onnx"))
    graph = artifact.path(f"{name}.onnx")
    open_tensorrt(graph, "padded", Device("tensorrt"), max_length=64, engines=tmp_path, timings=tmp_path).close()
    placed, written = onnx.load(tmp_path / "placed.onnx", load_external_data=False), graph_of(artifact, name)
    assert pairs_before_products(placed) == pairs_before_products(written)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        counts = [sum(node.op_type == kind for node in model.graph.node) for model in (placed, written)]
        assert counts[0] == counts[1]


def _saving(path: Path, level: str, *, is_strict: bool = True) -> Any:
    options = gpu_session_options(level, is_strict=is_strict)
    options.optimized_model_filepath = str(path)
    return options


def pairs_before_products(model: onnx.ModelProto) -> int:
    """Return how many products read activations and weights from 8 bits, each by nodes that nothing else reads."""
    maker = {output: node for node in model.graph.node for output in node.output}
    readers = Counter(name for node in model.graph.node for name in node.input)

    def of_8_bits(name: str) -> bool:
        node = maker.get(name)
        while node is not None and node.op_type == "Cast":  # which a CPU puts between, as it has no half precision
            name, node = node.input[0], maker.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear" and readers[name] == 1

    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    found = [sum(map(of_8_bits, node.input)) for node in products]
    assert set(found) <= {0, 2}
    return found.count(2)


@pytest.mark.parametrize("name", NAMES)
def test_the_cpu_provider_takes_the_file_as_it_is(artifact: Artifact, encoded: Encoded, name: str):
    proved = GraphOnCpu(artifact, variant_of(artifact, name), RowMaker.open(artifact))
    feed = padded(encoded, np.arange(encoded.n_rows))
    session = import_onnxruntime().InferenceSession(
        str(artifact.path(f"{name}.onnx")), providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {node.name: feed[node.name] for node in session.get_inputs()})
    # It leaves out roundings to half precision, and a value between two steps goes either way: as far as the limit.
    np.testing.assert_allclose(logits, proved.run(feed), atol=0.25, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_does_not_depend_on_the_rows_beside_it_or_on_what_they_are_filled_up_with(
    artifact: Artifact, encoded: Encoded, name: str
):
    """Scales are fixed, so that no other row's outlier makes a token coarser."""
    proved = GraphOnCpu(artifact, variant_of(artifact, name), RowMaker.open(artifact))
    feed = padded(encoded, np.arange(encoded.n_rows))
    is_filled_up = np.arange(feed["input_ids"].shape[1]) >= feed["lengths"][:, None]
    together, garbage = proved.run(feed), np.where(is_filled_up, 777, feed["input_ids"]).astype(np.int32)
    assert proved.run(feed | {"input_ids": garbage}).tobytes() == together.tobytes()
    alone = [proved.run(padded(encoded, np.array([row])))[0] for row in range(encoded.n_rows)]
    # The order of summation may put a value on the other side of the middle between two steps.
    np.testing.assert_allclose(alone, together, atol=0.1, rtol=0)


def test_the_variant_needs_nothing_of_the_fp16_one_but_the_tables(artifact: Artifact):
    data = set(variant_of(artifact, "tensorrt-int8").data)
    assert data == {
        "common.data",
        "common.fp16.data",
        "embeddings.fp16.data",
        "kept.fp16.data",
        "layers.tensorrt-int8.data",
    }


def test_what_drifts_too_far_on_other_text_is_tried_again_with_more_in_fp16(make_checkpoint: Make, tmp_path: Path):
    text = parse(b'{"query": "who?", "pos": ["me"]}', "text.jsonl")  # on which nothing drifts much
    checkpoint = str(make_checkpoint())

    def exported(name: str, max_difference: float) -> Variant:
        options = Options(
            precisions=["int8"], targets=["tensorrt"], calibration=text, max_difference=max_difference, min_tau=-1.0
        )
        return variant_of(export(checkpoint, tmp_path / name, options), "tensorrt-int8")

    assert_more_is_kept_for_less_drift(exported)


# What is said.


def test_the_command_writes_it_and_says_what_it_costs(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    limits = ["--max-drift", "0.5", "--min-tau", "0.5", "--no-verify"]
    folder = str(tmp_path / "artifact")
    command = ["export", str(make_checkpoint()), folder, "--target", "cpu", "tensorrt", "--precision", "int8", *limits]
    assert main(command) == 0
    variants = json.loads((tmp_path / "artifact" / "rankrt.json").read_text())["variants"]
    assert [variant["graph"] for variant in variants][-3:] == [
        "cpu-int8-vnni.onnx",
        "cpu-int8-avx2.onnx",
        "tensorrt-int8.onnx",
    ]
    assert variants[-1]["instruction_set"] is None
    assert main(["info", folder]) == 0
    shown = capsys.readouterr().out
    kept = len(variants[-1]["quantization"]["kept"])
    assert f"of the multiply-adds in int8, {kept} layers left in fp16" in shown


def test_limits_that_cannot_be_met_leave_nothing_and_say_how_far_it_got(make_checkpoint: Make, tmp_path: Path):
    options = Options(precisions=["int8"], targets=["tensorrt"], max_difference=1e-6)
    message = r"int8 for tensorrt is not written: .* within 1e-06 .* layers in fp16 it still differs by .*--max-drift"
    with pytest.raises(VerificationError, match=message):
        export(str(make_checkpoint()), tmp_path / "artifact", options)
    assert not (tmp_path / "artifact").exists()
