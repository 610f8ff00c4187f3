"""int8: the arithmetic, the graph that computes it, and the layers that are left out of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt import Reranker
from rankrt.artifact.hashes import FileHashes
from rankrt.artifact.manifest import Artifact, Variant
from rankrt.artifact.precisions import InstructionSet, VariantKey, variant_keys
from rankrt.artifact.source import Hub
from rankrt.backends.session import open_session, session_options
from rankrt.cli.main import main
from rankrt.files.cache import HostCache
from rankrt.host.cpu import this_machine
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.loading.choose import choose, place_variant
from rankrt.loading.prepare import prepare_for_cpu
from rankrt.loading.prepared import Prepared
from rankrt_export.calibrate.calibration import LEAST_INT8_SHARE, Calibration, calibrate
from rankrt_export.calibrate.layers import layers_of
from rankrt_export.calibrate.model import N_TOKENS, few_pairs, load_on_text, round_layers, rounded
from rankrt_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rankrt_export.errors import CheckpointError, VerificationError
from rankrt_export.graph.data_files import DataFiles
from rankrt_export.graph.graph import FLOAT, Graph
from rankrt_export.pipeline import Options, export
from rankrt_export.precision.float32 import Float32
from rankrt_export.precision.int8_numbers import (
    GELU_MINIMUM,
    LARGEST_ACTIVATION,
    LARGEST_HALF,
    LARGEST_WEIGHT,
    SYMMETRIC,
    Grid,
    Rounding,
    divisors,
    halves_of,
    one_sided,
    quantize,
    round_activations,
    token_scales,
    weight_scales,
)
from rankrt_export.precision.int8_panels import rows_of, stored_panels
from rankrt_export.precision.int8_stock import halves
from rankrt_export.precision.recipes import (
    LayerGroup,
    Scaling,
    Seen,
    TokenRecipe,
    group_recipes,
    group_scalings,
    token_recipe,
)
from rankrt_export.text.texts import sample
from rankrt_export.verify.verify import Limits
from tests.export.conftest import Make, assert_more_is_kept_for_less_drift
from tests.support import in_threads

pytestmark = pytest.mark.export
ON_CPU = variant_keys("cpu", "int8")
STOCK: tuple[InstructionSet, ...] = ("vnni", "avx2")
NO_LIMITS = Options(precisions=["fp32", "int8"], max_difference=1e9, min_tau=-1.0, is_verified=False)


def calibrate_loosely(checkpoint: Checkpoint) -> dict[VariantKey, Calibration]:
    found, failures = calibrate(checkpoint, sample(), dict.fromkeys(ON_CPU, Limits(max_difference=1e9, min_tau=-1.0)))
    assert not failures
    return found


def random_rows(n_rows: int, n_features: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(n_rows, n_features).astype(np.float32)


@pytest.fixture
def int8(make_checkpoint: Make, tmp_path: Path) -> Artifact:
    return export(str(make_checkpoint()), tmp_path / "artifact", NO_LIMITS)


# The arithmetic.


def recipe_of(weight: np.ndarray, x: np.ndarray) -> TokenRecipe:
    """Return the recipe of a layer that reads x, nothing divided."""
    scaling = Scaling(divisors=None, grid=SYMMETRIC, scales=weight_scales(weight))
    return token_recipe(scaling, weight, Rounding.by(x.T @ x))


def correlated_rows(n_rows: int, n_features: int, seed: int = 0) -> np.ndarray:
    """Return rows whose features go together, as those of a model do: a quarter as many would describe them."""
    mixed = random_rows(n_rows, n_features // 4, seed) @ random_rows(n_features // 4, n_features)
    return np.asarray(mixed + 0.3 * random_rows(n_rows, n_features, seed + 1), np.float32)


def test_no_pair_of_halves_overflows_16_bits_so_no_processor_saturates():
    assert 2 * LARGEST_ACTIVATION * LARGEST_HALF < 2**15
    weight, x = random_rows(8, 64) * 100, correlated_rows(300, 64)
    recipe = recipe_of(weight, x)
    assert np.abs(recipe.integers.astype(int)).max() <= LARGEST_WEIGHT
    assert np.abs(halves_of(recipe.integers, recipe.is_upper).astype(int)).max() <= LARGEST_HALF


@given(seed=st.integers(0, 50))
def test_without_correlations_every_weight_is_rounded_to_the_nearest(seed: int):
    weight = random_rows(6, 40, seed)
    scales, rounding = weight_scales(weight), Rounding.by(np.eye(40, dtype=np.float32))
    integers = rounding.integers(weight, scales)
    assert np.array_equal(integers, quantize(weight, scales))
    halves = halves_of(integers, rounding.is_upper(weight, scales, integers))
    off = np.abs(halves * 2 * scales[:, None] - weight)
    assert (off <= 1.0001 * scales[:, None])[np.abs(integers) < LARGEST_WEIGHT].all()


@pytest.mark.parametrize("instruction_set", STOCK)
def test_errors_make_up_for_one_another_on_text_that_was_not_seen(instruction_set: InstructionSet):
    weight, seen, unseen = random_rows(32, 192), correlated_rows(1000, 192, 1), correlated_rows(500, 192, 7)
    alone = Rounding.by(np.eye(192, dtype=np.float32))
    scaling = Scaling(divisors=None, grid=SYMMETRIC, scales=weight_scales(weight))
    recipes = token_recipe(scaling, weight, alone), recipe_of(weight, seen)
    nearest, together = (_unseen_error(replace(r, instruction_set=instruction_set), weight, unseen) for r in recipes)
    assert together < 0.5 * nearest


def _unseen_error(recipe: TokenRecipe, weight: np.ndarray, x: np.ndarray) -> float:
    return float((((recipe.weights(weight) - weight) @ x.T) ** 2).mean())


def test_more_inputs_than_tokens_can_be_rounded_for():
    recipe = recipe_of(random_rows(4, 300), np.zeros((2, 300), np.float32))
    assert np.abs(recipe.weights(random_rows(4, 300)) - random_rows(4, 300)).max() < 0.05


@pytest.mark.parametrize("grid", [SYMMETRIC, one_sided(GELU_MINIMUM)])
def test_activations_are_off_by_half_a_step_at_most(grid: Grid):
    x = random_rows(20, 100) if grid is SYMMETRIC else np.maximum(random_rows(20, 100), GELU_MINIMUM)
    assert (np.abs(round_activations(x, grid) - x) <= 0.5001 * token_scales(x, grid)).all()


def test_a_token_s_rounding_does_not_depend_on_the_other_tokens():
    x = random_rows(4, 32)
    with_outlier = np.concatenate([x, 1e4 * x[:1]])
    np.testing.assert_array_equal(round_activations(with_outlier, SYMMETRIC)[:4], round_activations(x, SYMMETRIC))


def test_what_comes_from_a_gelu_has_nearly_twice_the_steps():
    x = np.abs(random_rows(50, 256)) * 3
    symmetric, one = (np.abs(round_activations(x, grid) - x).mean() for grid in (SYMMETRIC, one_sided(GELU_MINIMUM)))
    assert one < 0.6 * symmetric


def test_a_row_of_zeros_stays_zero():
    zeros = np.zeros((2, 16), np.float32)
    assert not round_activations(zeros, SYMMETRIC).any()
    assert not quantize(zeros, weight_scales(zeros)).any()


def test_clipping_is_used_where_it_makes_the_error_smaller():
    weight = random_rows(1, 4096)
    weight[0, 0] = 3 * np.abs(weight).max()
    assert weight_scales(weight)[0] < np.abs(weight).max() / LARGEST_WEIGHT


@given(strength=st.floats(0, 1), seed=st.integers(0, 50))
def test_divisors_are_positive_and_their_geometric_mean_is_one(strength: float, seed: int):
    activations, weights = np.abs(random_rows(2, 40, seed)) + 0.01
    found = divisors(activations, weights, strength)
    assert (found > 0).all()
    assert np.exp(np.log(found).mean()) == pytest.approx(1, rel=1e-3)


def test_a_channel_that_is_never_used_is_left_alone():
    found = divisors(np.array([0.0, 4.0, 1.0], np.float32), np.array([1.0, 0.0, 1.0], np.float32), 0.5)
    assert found[:2].tolist() == [1.0, 1.0]


def test_outlier_channels_move_into_the_weights():
    x, weight = random_rows(64, 128), random_rows(32, 128, seed=1)
    x[:, [3, 70]] *= 40
    group = LayerGroup(layers=("layer",), is_after_gelu=False)
    (scaling,) = group_scalings(group, [weight], Seen(rows=x, shares=[]))
    plain = Scaling(divisors=None, grid=SYMMETRIC, scales=weight_scales(weight))
    assert scaling.divisors is not None
    assert _error(scaling, x, weight) < 0.5 * _error(plain, x, weight)


def _error(scaling: Scaling, x: np.ndarray, weight: np.ndarray) -> float:
    return float(((scaling.round(x) @ scaling.weights(weight).T - x @ weight.T) ** 2).mean())


def test_a_token_that_counts_more_is_more_exact():
    x, weight = random_rows(60, 64), random_rows(32, 64, seed=1)
    group = LayerGroup(layers=("layer",), is_after_gelu=False)

    def error_of_first_ten(share: float) -> float:
        shares = np.where(np.arange(60) < 10, share, 1).astype(np.float32)
        (recipe,) = group_recipes(group, [weight], Seen(rows=x, shares=[shares]))
        found = recipe.round(x[:10]) @ recipe.weights(weight).T
        return float(((found - recipe.round(x[:10]) @ recipe.multiply(weight).T) ** 2).mean())

    assert error_of_first_ten(100.0) < 0.5 * error_of_first_ten(1.0)


# The graph.


def test_layers_that_read_the_same_activations_are_one_group(make_checkpoint: Make):
    layers = layers_of(open_checkpoint(str(make_checkpoint()), Hub()))
    first = layers.groups[0]
    assert [name.rsplit(".", 1)[1] for name in first.layers] == ["query", "key", "value"]
    assert [group.is_after_gelu for group in layers.groups[:4]] == [False, False, False, True]
    assert sum(len(group.layers) for group in layers.groups) == 3 * 6
    assert layers.tables == ("roberta.embeddings.word_embeddings",)


class _OneWeight:
    """A checkpoint of one matrix."""

    def __init__(self, weight: np.ndarray) -> None:
        self._weight = weight

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weight.shape

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        yield self._weight


@pytest.mark.parametrize("n_out", [16, 13])  # a row of bits ends with a byte, or within one
def test_the_graph_for_avx2_derives_its_weights_from_the_8_bits(tmp_path: Path, n_out: int):
    weight = random_rows(n_out, 24)
    recipe = recipe_of(weight, correlated_rows(200, 24))
    with DataFiles(tmp_path) as data:
        graph = Graph(weights=_OneWeight(weight), data=data, precision=Float32())  # type: ignore[arg-type]
        rows = rows_of(graph, stored_panels(graph, "layer", recipe), n_in=24, n_out=n_out)
        stored, scales = halves(graph, *rows, "layer", recipe)
        graph.save(tmp_path / "halves.onnx", stored=graph.op("Cast", stored, to=FLOAT), scales=scales)
    found, of_outputs = open_session(tmp_path / "halves.onnx", session_options(1)).run(None, {})
    assert np.array_equal(found.T, halves_of(recipe.integers, recipe.is_upper))
    assert np.array_equal(of_outputs, 2 * recipe.scales)


@pytest.mark.parametrize("instruction_set", STOCK)
def test_the_derivation_is_folded_when_the_model_is_prepared(
    int8: Artifact, tmp_path: Path, instruction_set: InstructionSet
):
    host = this_host()
    variant = choose(int8, "int8", host.machine, instruction_set)
    placement = place_variant(int8, variant, Device("cpu"), host)
    (graph,), _ = prepare_for_cpu(placement, Prepared(HostCache(tmp_path)), FileHashes(int8.folder, None))
    prepared = onnx.load(graph, load_external_data=False).graph
    operators = {node.op_type for node in prepared.node}
    assert "MatMulIntegerToFloat" in operators
    assert not {"BitShift", "BitwiseAnd", "Transpose"} & operators
    assert not [tensor.name for tensor in prepared.initializer if len(tensor.dims) == 4]  # panels are not kept beside


def test_stock_graphs_share_one_set_of_weights(int8: Artifact):
    vnni, avx2 = (choose(int8, "int8", this_machine(), name) for name in STOCK)
    assert (vnni.name, avx2.name) == ("cpu-int8-vnni", "cpu-int8-avx2")
    assert set(avx2.data) - set(vnni.data) == {"halves.int8.data"}
    assert set(vnni.data) < set(avx2.data)
    assert int8.manifest.files["halves.int8.data"].n_bytes < 0.15 * int8.manifest.files["layers.int8.data"].n_bytes


# Where products are added in 16 bits, on a processor that is not here: in QEMU, which knows no AVX-512.
_ON_HASWELL = """
import sys
import numpy as np
from pathlib import Path
from rankrt.backends.session import open_session, session_options
for instruction_set in ("vnni", "avx2"):
    options = session_options(1, "widened" if instruction_set == "vnni" else "exported")
    session = open_session(Path(sys.argv[1]) / f"{instruction_set}.onnx", options)
    print(session.run(None, {"x": np.full((int(sys.argv[2]), 64), 255, np.uint8)})[0].tolist())
"""


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user, to emulate a processor without VNNI")
@pytest.mark.parametrize("n_rows", [1, 5])
def test_neither_graph_saturates_on_a_processor_without_vnni(tmp_path: Path, n_rows: int):
    for instruction_set, largest in (("vnni", LARGEST_WEIGHT), ("avx2", LARGEST_HALF)):
        onnx.save(extreme_product(largest), tmp_path / f"{instruction_set}.onnx")
    command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", _ON_HASWELL, str(tmp_path), str(n_rows)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for line, largest in zip(found, (LARGEST_WEIGHT, LARGEST_HALF), strict=True):
        assert json.loads(line) == [[64 * (255 - 128) * largest] * 8] * n_rows


def extreme_product(largest: int) -> onnx.ModelProto:
    """Return a graph that multiplies 64 activations with weights that are all the largest."""
    constants = {
        "weights": np.full((64, 8), largest, np.int8),
        "one": np.array(1, np.float32),
        "scales": np.ones(8, np.float32),
        "zero_point": np.array(128, np.uint8),
    }
    node = onnx.helper.make_node("MatMulIntegerToFloat", ["x", *constants], ["y"], domain="com.microsoft")
    graph = onnx.helper.make_graph(
        [node],
        "extreme",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, ["n", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("instruction_set", STOCK)
def test_the_graph_computes_what_the_calibration_simulated(
    make_checkpoint: Make, tmp_path: Path, instruction_set: InstructionSet
):
    folder = make_checkpoint()
    artifact = export(str(folder), tmp_path / "artifact", NO_LIMITS)
    checkpoint = open_checkpoint(str(folder), Hub())
    key = VariantKey(target="cpu", precision="int8", instruction_set=instruction_set)
    found = calibrate_loosely(checkpoint)[key]
    on_text = load_on_text(checkpoint, sample(), lambda n_done: None)
    with rounded(on_text, round_layers(on_text, found.layers).values(), found.tables):
        simulated = on_text.scores()
    with Reranker.load(
        artifact.folder,
        precision="int8",
        instruction_set=instruction_set,
        max_length=N_TOKENS,
        truncation="longest_first",
    ) as reranker:
        scores = reranker.score(few_pairs(sample()).pairs)
    # A value on the edge between two steps may be rounded either way, as sums differ in their last bit, and this
    # network carries that on: so most rows are compared, not all.
    assert np.quantile(np.abs(scores - simulated), 0.6) < 1e-3
    assert np.quantile(np.abs(scores - on_text.logits), 0.6) > 1e-2


@pytest.mark.parametrize("instruction_set", STOCK)
def test_a_score_is_the_same_alone_in_any_batch_and_from_any_thread(int8: Artifact, instruction_set: InstructionSet):
    pairs = sample().pairs[:24]
    load = partial(Reranker.load, int8.folder, precision="int8", instruction_set=instruction_set)
    with load(n_threads=2) as reranker:
        together = reranker.score(pairs)
        assert [reranker.score([pair])[0] for pair in pairs] == together.tolist()
        assert reranker.score(pairs[::-1])[::-1].tolist() == together.tolist()
        threads = in_threads(4, lambda i: reranker.score(pairs[i::4]).tolist())
    assert [threads[i % 4][i // 4] for i in range(len(pairs))] == together.tolist()  # type: ignore[index]
    with load(n_threads=1, prepare=False) as reranker:
        assert reranker.score(pairs).tolist() == together.tolist()


def test_the_int8_variant_needs_nothing_of_the_fp32_one(int8: Artifact, tmp_path: Path):
    variant = choose(int8, "int8", this_machine(), "vnni")
    assert not {"layers.fp32.data", "embeddings.fp32.data"} & set(variant.data)
    n_bytes = {v.name: sum(int8.manifest.files[name].n_bytes for name in v.data) for v in int8.manifest.variants}
    assert (
        n_bytes["cpu-int8-vnni"] < 0.6 * n_bytes["cpu-fp32"]
    )  # positions and norms, which stay fp32, are much of a tiny model


# Limits.


def test_the_costliest_layers_stay_in_fp32_until_the_limits_are_met(make_checkpoint: Make):
    checkpoint = open_checkpoint(str(make_checkpoint()), Hub())
    limits = Limits(max_difference=0.05, min_tau=-1.0)
    vnni = VariantKey(target="cpu", precision="int8", instruction_set="vnni")
    found = [calibrate_loosely(checkpoint), calibrate(checkpoint, sample(), {vnni: limits})[0]]
    loose, tight = (result[vnni].recipe(result[vnni].n_kept) for result in found)
    assert not loose.kept
    assert loose.share == 1
    assert tight.kept
    assert LEAST_INT8_SHARE <= tight.share < 1
    assert not {layer.name for layer in tight.kept} & tight.layers.keys()


def test_what_drifts_too_far_on_other_text_is_tried_again_with_more_in_fp32(make_checkpoint: Make, tmp_path: Path):
    # Calibrated on one question in one language, for which weights are rounded. How much it drifts elsewhere depends on
    # the random weights, which are not the same with every transformers.
    text = replace(sample(), questions=sample().questions[:1])
    checkpoint = str(make_checkpoint())

    def exported(name: str, max_difference: float) -> Variant:
        options = Options(precisions=["fp32", "int8"], calibration=text, max_difference=max_difference, min_tau=0.0)
        return choose(export(checkpoint, tmp_path / name, options), "int8", this_machine(), "vnni")

    assert_more_is_kept_for_less_drift(exported)


def test_the_estimated_cost_of_a_layer_is_what_rounding_it_alone_costs(make_checkpoint: Make):
    checkpoint = open_checkpoint(str(make_checkpoint()), Hub())
    found = calibrate_loosely(checkpoint)[ON_CPU[0]]
    on_text = load_on_text(checkpoint, sample(), lambda n_done: None)
    layers, measured = round_layers(on_text, found.layers), []
    for name in found.drifts.layers:
        with rounded(on_text, [layers[name]], tables={}):
            measured.append(np.sqrt(((on_text.scores() - on_text.logits) ** 2).mean()))
    # To the first order: the ranking is what the choice needs.
    assert np.corrcoef(np.log(found.drifts.costs), np.log(measured))[0, 1] > 0.9


def test_a_model_is_as_it_was_after_it_was_rounded(make_checkpoint: Make):
    checkpoint = open_checkpoint(str(make_checkpoint()), Hub())
    found = calibrate_loosely(checkpoint)[ON_CPU[0]]
    on_text = load_on_text(checkpoint, sample(), lambda n_done: None)
    with (
        pytest.raises(KeyboardInterrupt),
        rounded(on_text, round_layers(on_text, found.layers).values(), found.tables),
    ):
        assert on_text.drift() > 0
        raise KeyboardInterrupt
    assert on_text.drift() == 0


def test_limits_that_cannot_be_met_leave_nothing_and_say_how_far_it_got(make_checkpoint: Make, tmp_path: Path):
    options = Options(precisions=["int8"], max_difference=1e-6)
    with pytest.raises(VerificationError, match=r"int8 .* cannot be within 1e-06 .* it still differs by .*--max-drift"):
        export(str(make_checkpoint()), tmp_path / "artifact", options)
    assert not (tmp_path / "artifact").exists()


def test_what_was_left_out_and_why_is_in_the_artifact(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = str(tmp_path / "artifact")
    arguments = ["--precision", "fp32", "int8", "--max-drift", "0.05", "--min-tau", "0.5", "--no-verify"]
    assert main(["export", str(make_checkpoint()), folder, *arguments]) == 0
    shown = capsys.readouterr().out
    assert "of the multiply-adds in int8" in shown
    assert "would drift by" in shown
    manifest = json.loads((tmp_path / "artifact" / "rankrt.json").read_text())
    for variant in manifest["variants"]:
        assert variant["quantization"]["kept"] if variant["precision"] == "int8" else variant["quantization"] is None


def test_a_traced_model_has_no_int8(make_checkpoint: Make, tmp_path: Path):
    with pytest.raises(CheckpointError, match="is exported by tracing, for the CPU in fp32 only"):
        export(str(make_checkpoint("AlbertConfig")), tmp_path / "artifact", Options(precisions=["int8"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "who?", "pos": ["me"]}', "missing required field `query`"),
        ("", "has no text"),
        ('{"query": "who?", "pos": "me"}', r"Expected `array`"),
    ],
)
def test_a_calibration_file_that_is_none_is_refused(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
):
    file = tmp_path / "text.jsonl"
    file.write_text(content)
    arguments = ["--precision", "int8", "--calibration", str(file)]
    assert main(["export", str(make_checkpoint()), str(tmp_path / "artifact"), *arguments]) == 1
    assert message.strip("r") in capsys.readouterr().err


def test_text_in_one_language_calibrates_and_is_recorded(make_checkpoint: Make, tmp_path: Path):
    file = tmp_path / "text.jsonl"
    file.write_text('{"query": "who?", "pos": ["me"], "neg": ["you", "they"]}\n')
    arguments = ["--precision", "int8", "--calibration", str(file), "--max-drift", "1e9", "--min-tau", "-1"]
    assert main(["export", str(make_checkpoint()), str(tmp_path / "artifact"), *arguments]) == 0
    variants = json.loads((tmp_path / "artifact" / "rankrt.json").read_text())["variants"]
    assert [variant["instruction_set"] for variant in variants][-2:] == ["vnni", "avx2"]
    assert all(variant["quantization"]["text_sha256"] != sample().sha256 for variant in variants)
