"""int8: the arithmetic, the graph that computes it, and the layers that are left out of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt import Reranker
from rankrt.artifact import Artifact
from rankrt.cli import main
from rankrt.sources import Hub
from rankrt_export import calibration
from rankrt_export.calibration import LayerRecipe, calibrate, few_pairs, group_recipes
from rankrt_export.checkpoint import open_checkpoint
from rankrt_export.errors import CheckpointError, VerificationError
from rankrt_export.layers import LayerGroup, layers_of
from rankrt_export.pipeline import Options, export
from rankrt_export.quantization import (
    GELU_MINIMUM,
    LARGEST_ACTIVATION,
    LARGEST_WEIGHT,
    SYMMETRIC,
    Grid,
    divisors,
    one_sided,
    quantized,
    rounded_activations,
    token_scales,
    weight_scales,
)
from rankrt_export.texts import parse, sample
from rankrt_export.verify import Limits
from tests.export.conftest import Make
from tests.support import in_threads

pytestmark = pytest.mark.export
NO_LIMITS = Options(precisions=["fp32", "int8"], max_difference=1e9, min_tau=-1.0, is_verified=False)


def random_rows(n_rows: int, n_features: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(n_rows, n_features).astype(np.float32)


@pytest.fixture
def int8(make_checkpoint: Make, tmp_path: Path) -> Artifact:
    return export(str(make_checkpoint()), tmp_path / "artifact", NO_LIMITS)


# The arithmetic.


def test_no_pair_of_products_overflows_16_bits_so_no_processor_saturates():
    assert 2 * LARGEST_ACTIVATION * LARGEST_WEIGHT < 2**15
    weight = random_rows(8, 64) * 100
    assert np.abs(quantized(weight, weight_scales(weight)).astype(int)).max() <= LARGEST_WEIGHT


@pytest.mark.parametrize("grid", [SYMMETRIC, one_sided(GELU_MINIMUM)])
def test_activations_are_off_by_half_a_step_at_most(grid: Grid):
    x = random_rows(20, 100) if grid is SYMMETRIC else np.maximum(random_rows(20, 100), GELU_MINIMUM)
    assert (np.abs(rounded_activations(x, grid) - x) <= 0.5001 * token_scales(x, grid)).all()


def test_a_token_s_rounding_does_not_depend_on_the_other_tokens():
    x = random_rows(4, 32)
    with_outlier = np.concatenate([x, 1e4 * x[:1]])
    np.testing.assert_array_equal(rounded_activations(with_outlier, SYMMETRIC)[:4], rounded_activations(x, SYMMETRIC))


def test_what_comes_from_a_gelu_has_nearly_twice_the_steps():
    x = np.abs(random_rows(50, 256)) * 3
    symmetric, one = (np.abs(rounded_activations(x, grid) - x).mean() for grid in (SYMMETRIC, one_sided(GELU_MINIMUM)))
    assert one < 0.6 * symmetric


def test_a_row_of_zeros_stays_zero():
    zeros = np.zeros((2, 16), np.float32)
    assert not rounded_activations(zeros, SYMMETRIC).any()
    assert not quantized(zeros, weight_scales(zeros)).any()


def test_clipping_is_used_where_it_makes_the_error_smaller():
    weight = random_rows(1, 4096)
    weight[0, 0] = 1.2 * np.abs(weight).max()
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
    group = LayerGroup(layers=("layer",), is_behind_gelu=False)
    (recipe,) = group_recipes(group, [weight], np.abs(x).max(axis=0), x)
    plain = LayerRecipe(divisors=None, grid=SYMMETRIC, scales=weight_scales(weight))
    assert recipe.divisors is not None
    assert _error(recipe, x, weight) < 0.5 * _error(plain, x, weight)


def _error(recipe: LayerRecipe, x: np.ndarray, weight: np.ndarray) -> float:
    found = recipe.rounded(x) @ (recipe.integers(weight) * recipe.scales[:, None]).T
    return float(((found - x @ weight.T) ** 2).mean())


# The graph.


def test_layers_that_read_the_same_activations_are_one_group(make_checkpoint: Make):
    layers = layers_of(open_checkpoint(str(make_checkpoint()), Hub()))
    first = layers.groups[0]
    assert [name.rsplit(".", 1)[1] for name in first.layers] == ["query", "key", "value"]
    assert [group.is_behind_gelu for group in layers.groups[:4]] == [False, False, False, True]
    assert sum(len(group.layers) for group in layers.groups) == 3 * 6
    assert layers.tables == ("roberta.embeddings.word_embeddings",)


def test_the_graph_computes_what_the_calibration_simulated(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint()
    artifact = export(str(folder), tmp_path / "artifact", NO_LIMITS)
    checkpoint, limits = open_checkpoint(str(folder), Hub()), Limits(max_difference=1e9, min_tau=-1.0)
    trial = calibration._Trial(checkpoint, sample(), limits, lambda n_done: None)
    with trial._in_int8(trial.costliest):
        simulated = trial._scores()
    with Reranker.load(
        artifact.folder, precision="int8", max_length=calibration.N_TOKENS, truncation="longest_first"
    ) as reranker:
        scores = reranker.score(few_pairs(sample()).pairs)
    # A value on the edge between two steps may be rounded either way, as sums differ in their last bit, and this
    # network carries that on: so most rows are compared, not all.
    assert np.quantile(np.abs(scores - simulated), 0.6) < 1e-3
    assert np.quantile(np.abs(scores - trial._logits), 0.6) > 1e-2


def test_a_score_is_the_same_alone_in_any_batch_and_from_any_thread(int8: Artifact):
    pairs = sample().pairs[:24]
    with Reranker.load(int8.folder, precision="int8", n_threads=2) as reranker:
        together = reranker.score(pairs)
        assert [reranker.score([pair])[0] for pair in pairs] == together.tolist()
        assert reranker.score(pairs[::-1])[::-1].tolist() == together.tolist()
        threads = in_threads(4, lambda i: reranker.score(pairs[i::4]).tolist())
    assert [threads[i % 4][i // 4] for i in range(len(pairs))] == together.tolist()  # type: ignore[index]
    with Reranker.load(int8.folder, precision="int8", n_threads=1, prepare=False) as reranker:
        assert reranker.score(pairs).tolist() == together.tolist()


def test_the_int8_variant_needs_nothing_of_the_fp32_one(int8: Artifact, tmp_path: Path):
    (variant,) = (v for v in int8.manifest.variants if v.precision == "int8")
    assert not {"layers.fp32.data", "embeddings.fp32.data"} & set(variant.data)
    n_bytes = {v.precision: sum(int8.manifest.files[name].n_bytes for name in v.data) for v in int8.manifest.variants}
    assert n_bytes["int8"] < 0.6 * n_bytes["fp32"]  # positions and norms, which stay fp32, are much of a tiny model


# Limits.


def test_the_costliest_layers_stay_in_fp32_until_the_limits_are_met(make_checkpoint: Make):
    checkpoint = open_checkpoint(str(make_checkpoint()), Hub())
    found = [calibrate(checkpoint, sample(), Limits(max_difference=limit, min_tau=-1.0)) for limit in (1e9, 0.05)]
    loose, tight = (result.recipe(result.n_kept) for result in found)
    assert not loose.kept
    assert loose.share == 1
    assert tight.kept
    assert calibration.LEAST_INT8_SHARE <= tight.share < 1
    assert not {layer.name for layer in tight.kept} & tight.layers.keys()


def test_what_drifts_too_far_on_other_text_is_tried_again_with_more_in_fp32(make_checkpoint: Make, tmp_path: Path):
    # Calibrated on one pair, on which nothing drifts much.
    text = parse(b'{"query": "who?", "pos": ["me"]}', "text.jsonl")
    options = Options(precisions=["fp32", "int8"], calibration=text, max_difference=0.15, min_tau=0.0)
    artifact = export(str(make_checkpoint()), tmp_path / "artifact", options)
    variant = artifact.choose("cpu", "int8")
    assert variant.quantization is not None
    assert variant.verification is not None
    assert variant.quantization.kept
    assert variant.verification.max_difference <= 0.15


def test_the_estimated_cost_of_a_layer_is_what_rounding_it_alone_costs(make_checkpoint: Make):
    checkpoint, limits = open_checkpoint(str(make_checkpoint()), Hub()), Limits(max_difference=1e9, min_tau=-1.0)
    trial = calibration._Trial(checkpoint, sample(), limits, lambda n_done: None)
    trial.tables = {}
    estimated, measured = [], []
    for name in trial.costliest:
        with trial._in_int8([name]):
            measured.append(np.sqrt(((trial._scores() - trial._logits) ** 2).mean()))
        estimated.append(trial.cost(name))
    # To the first order: the ranking is what the choice needs.
    assert np.corrcoef(np.log(estimated), np.log(measured))[0, 1] > 0.9


def test_limits_that_cannot_be_met_leave_nothing_and_say_how_far_it_got(make_checkpoint: Make, tmp_path: Path):
    options = Options(precisions=["int8"], max_difference=1e-6)
    with pytest.raises(VerificationError, match=r"int8 cannot be within 1e-06 .* it still differs by .*--max-drift"):
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
    assert manifest["variants"][0]["quantization"] is None
    assert manifest["variants"][1]["quantization"]["kept"]


def test_a_traced_model_has_no_int8(make_checkpoint: Make, tmp_path: Path):
    with pytest.raises(CheckpointError, match="BertForSequenceClassification is traced; int8 is for XLMRoberta"):
        export(str(make_checkpoint("BertConfig")), tmp_path / "artifact", Options(precisions=["int8"]))


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
    (variant,) = json.loads((tmp_path / "artifact" / "rankrt.json").read_text())["variants"]
    assert variant["quantization"]["text_sha256"] != sample().sha256
