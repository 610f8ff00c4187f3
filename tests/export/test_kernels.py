"""fp32 and int8 by rankrt's own kernels: the graphs beside the stock ones, its weights, and hosts without the kernels.

The kernels themselves are tested in tests/kernels. Limits of every family beside PyTorch are in the families' files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import transformers

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact, open_artifact
from rankrt.artifact.precisions import PRECISIONS, VariantKey, variant_keys
from rankrt.artifact.source import Hub
from rankrt.backends.session import open_session, session_options
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.kernels import kernels_in_use
from rankrt.loading.choose import place_variant
from rankrt.loading.open import open_backend
from rankrt.options import LoadOptions
from rankrt_export import pipeline
from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.calibrate.calibration import Calibration, calibrate
from rankrt_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rankrt_export.checkpoint.tokenizer import has_token_types
from rankrt_export.graph.blueprint import Blueprint, GraphOperators
from rankrt_export.graph.data_files import DataFiles
from rankrt_export.graph.graph import FLOAT, RANKRT, Arithmetic, Graph
from rankrt_export.pipeline import Options, export
from rankrt_export.precision.float32 import Float32, Float32Kernels
from rankrt_export.precision.int8 import Int8
from rankrt_export.precision.int8_panels import Panels, quads_of, rows_of
from rankrt_export.reference.pytorch import tokenized
from rankrt_export.text.texts import sample
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.verify import Limits
from tests.export import test_bert, test_deberta, test_gte, test_modernbert
from tests.export.conftest import Make, checkpoint_of
from tests.export.test_precisions import TRAINED
from tests.support import in_threads

pytestmark = [
    pytest.mark.export,
    pytest.mark.skipif(kernels_in_use() is None, reason="needs the library of rankrt's kernels"),
]

FP32, INT8 = variant_keys("cpu", "fp32"), variant_keys("cpu", "int8")
KERNELS, VNNI, _ = INT8
TEXT = replace(sample(), questions=sample().questions[:3])
OPERATORS: tuple[GraphOperators, GraphOperators] = ("cpu", "kernels")
ODD: dict[str, Any] = {"hidden_size": 30, "num_attention_heads": 3, "intermediate_size": 67}


def of_bert(name: str) -> Callable[[Path], Path]:
    config, changes = test_bert.FAMILIES[name]
    return lambda folder: checkpoint_of(folder, config, **changes)


BERTS: dict[str, Callable[[Path], Path]] = {
    "xlm-roberta": lambda folder: checkpoint_of(folder, "XLMRobertaConfig"),
    "sizes that fill neither panels nor quads": lambda folder: checkpoint_of(folder, "XLMRobertaConfig", **ODD),
    **{name: of_bert(name) for name in test_bert.FAMILIES},
}
OTHERS: dict[str, Callable[[Path], Path]] = {
    "gte": lambda folder: test_gte.new_checkpoint(folder),
    "modernbert": lambda folder: checkpoint_of(folder, "ModernBertConfig", **test_modernbert.SMALL),
    "deberta": lambda folder: test_deberta.new_checkpoint(folder),
}
NEEDS = {
    "gte": pytest.mark.skipif(not hasattr(transformers, "GteConfig"), reason="transformers has GTE since 5.23"),
}


def calibrated(checkpoint: Checkpoint) -> dict[VariantKey, Calibration]:
    limits = Limits(max_difference=1e9, min_tau=-1.0)
    return calibrate(checkpoint, TEXT, dict.fromkeys((KERNELS, VNNI), limits))[0]


def logits(
    folder: Path,
    checkpoint: Checkpoint,
    operators: GraphOperators,
    arithmetic: Arithmetic,
    *,
    n_threads: int = 1,
    alone: bool = False,
) -> Float32Array:
    """Write a graph of the checkpoint, if that was not done, and run it on the text, in one run or row by row."""
    if not folder.exists():
        write(folder, checkpoint, operators, arithmetic)
    session = open_session(folder / "graph.onnx", session_options(n_threads, "kernels"))
    rows = tokenized(checkpoint, TEXT.pairs, 200)
    runs = [[row] for row in rows] if alone else [rows]
    return np.concatenate([run(session, together) for together in runs])


def write(folder: Path, checkpoint: Checkpoint, operators: GraphOperators, arithmetic: Arithmetic) -> None:
    folder.mkdir()
    with DataFiles(folder) as data:
        blueprint = Blueprint(
            config=checkpoint.config,
            weights=checkpoint.weights,
            target="cpu",
            operators=operators,
            readouts=[],
            max_length=checkpoint.max_length,
            has_token_types=has_token_types(checkpoint),
            new_graph=partial(Graph, weights=checkpoint.weights, data=data, precision=arithmetic),
        )
        (section,) = ARCHITECTURES[checkpoint.architecture](blueprint)
        section.graph.save(folder / "graph.onnx", **section.outputs)


def run(session: Any, rows: Sequence[Mapping[str, Any]]) -> Float32Array:
    feed = {name: np.concatenate([np.asarray(row[name], np.int32) for row in rows]) for name in rows[0]}
    feed["row_offsets"] = np.cumsum([0, *(len(row["input_ids"]) for row in rows)]).astype(np.int32)
    (found,) = session.run(None, {node.name: feed[node.name] for node in session.get_inputs()})
    return np.asarray(found, np.float32)


FAMILIES = [*BERTS, *(pytest.param(name, marks=NEEDS.get(name, ())) for name in OTHERS)]


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_rounded_as_in_the_stock_graph(tmp_path: Path, name: str):
    """The stock attention in both, and two layers in fp32: only what kernels make of the other layers can differ."""
    checkpoint = open_checkpoint(str((BERTS | OTHERS)[name](tmp_path / "checkpoint")), Hub())
    recipes = {key: found.recipe(2) for key, found in calibrated(checkpoint).items()}
    assert [layer.name for layer in recipes[KERNELS].kept] == [layer.name for layer in recipes[VNNI].kept]
    stock = logits(tmp_path / "stock", checkpoint, "cpu", Int8(recipes[VNNI]))
    found = logits(tmp_path / "kernels", checkpoint, "cpu", Int8(recipes[KERNELS]))
    exact = logits(tmp_path / "fp32", checkpoint, "cpu", Float32())
    differences = np.abs(found - stock)
    # Sums in another order and a GELU that is off by 1e-6 came to 1e-5. In a few rows that puts a value on the edge
    # of two steps into the other one, which these networks carry on; that is less than what rounding costs.
    assert np.quantile(differences, 0.6) < 1e-4
    assert differences.max() < np.abs(stock - exact).max()


@pytest.mark.parametrize("name", BERTS)
def test_attention_and_norms_are_those_of_the_stock_graph(tmp_path: Path, name: str):
    """The layers in fp32, in which only attention's 16 bits can be seen."""
    checkpoint = open_checkpoint(str(BERTS[name](tmp_path / "checkpoint")), Hub())
    stock, found = (logits(tmp_path / of, checkpoint, of, Float32()) for of in OPERATORS)
    # Attention is off by 1e-3 of its outputs. Three layers of weights that are nine times too large made up to 0.005 of
    # the scores' spread of that. A norm, a place or a bias that is missing makes about all of it.
    np.testing.assert_allclose(found, stock, atol=0.01 * stock.std(), rtol=0)


# fp32.


@pytest.mark.parametrize("name", FAMILIES)
def test_fp32_is_that_of_the_stock_graph(tmp_path: Path, name: str):
    checkpoint = open_checkpoint(str((BERTS | OTHERS)[name](tmp_path / "checkpoint")), Hub())
    stock = logits(tmp_path / "stock", checkpoint, "cpu", Float32())
    found = logits(tmp_path / "kernels", checkpoint, "float_kernels", Float32Kernels())
    # Sums in another order and another GELU came to 8e-6, in logits of up to 30.
    np.testing.assert_allclose(found, stock, atol=2e-5, rtol=0)
    layers = onnx.load(tmp_path / "kernels" / "graph.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == "FloatLinear" for node in layers) >= 4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_score_in_fp32_has_the_same_bits_alone_and_on_two_threads(tmp_path: Path, name: str):
    checkpoint = open_checkpoint(str((BERTS | OTHERS)[name](tmp_path / "checkpoint")), Hub())
    of = partial(logits, tmp_path / "graph", checkpoint, "float_kernels", Float32Kernels())
    together = of().tobytes()
    for n_threads in (1, 2):
        assert of(n_threads=n_threads).tobytes() == together
        assert of(n_threads=n_threads, alone=True).tobytes() == together


def test_of_a_trained_model_fp32_differs_by_the_order_of_sums_only(tmp_path: Path):
    checkpoint = open_checkpoint(str(TRAINED), Hub())
    stock = logits(tmp_path / "stock", checkpoint, "cpu", Float32())
    found = logits(tmp_path / "kernels", checkpoint, "float_kernels", Float32Kernels())
    # It came to 1.2e-5 in logits of up to 7.4.
    np.testing.assert_allclose(found, stock, atol=2e-5, rtol=0)


# The whole variant.


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = BERTS["bert"](tmp_path_factory.mktemp("kernels") / "checkpoint")
    options = Options(precisions=["fp32", "int8"], calibration=TEXT, max_difference=9.0, min_tau=-1.0)
    return export(str(folder), folder.parent / "artifact", options)


def test_it_is_written_first_and_verified_like_the_others(artifact: Artifact):
    assert [v.name for v in artifact.manifest.variants] == [*map(str, (*FP32, *INT8))]
    kernels, vnni, _ = artifact.manifest.variants[len(FP32) :]
    assert kernels.verification is not None
    assert vnni.verification is not None
    # Both round alike, so neither drifts far more than the other.
    assert kernels.verification.max_difference == pytest.approx(vnni.verification.max_difference, rel=1.0)
    assert kernels.quantization == vnni.quantization


def test_in_fp32_it_is_within_the_limits_of_fp32(artifact: Artifact):
    kernels, stock = (v.verification for v in artifact.manifest.variants[: len(FP32)])
    assert kernels is not None
    assert stock is not None
    assert max(kernels.max_difference, stock.max_difference) < PRECISIONS["fp32"].max_difference


def test_the_weights_are_stored_once(artifact: Artifact):
    data = {v.name: v.data for v in artifact.manifest.variants}
    assert data["cpu-fp32-kernels"] == data["cpu-fp32"]
    assert data["cpu-int8-kernels"] == data["cpu-int8-vnni"]
    n_weights = sum(shape[0] * shape[1] for shape in 3 * [*4 * [(32, 32)], (64, 32), (32, 64)])
    n_others = 18 * (64 * (4 + 4) + 2 * 64)  # scales, sums, and what brings each to a line of the cache
    assert n_weights <= artifact.manifest.files["layers.int8.data"].n_bytes <= n_weights + n_others


def test_its_domain_is_named_in_its_graph_alone(artifact: Artifact):
    domains = {
        v.name: {opset.domain for opset in onnx.load(artifact.path(v.graph), load_external_data=False).opset_import}
        for v in artifact.manifest.variants
    }
    assert [name for name, found in domains.items() if RANKRT in found] == ["cpu-fp32-kernels", "cpu-int8-kernels"]


@pytest.mark.parametrize("key", [FP32[0], KERNELS], ids=str)
def test_a_score_depends_on_its_pair_alone(artifact: Artifact, key: VariantKey):
    """Bitwise: alone, in any batch, on one thread and two, and from several threads at a time."""
    rows = RowMaker.open(artifact)
    encoded, singles = rows.encode(TEXT.pairs), [rows.encode([pair]) for pair in TEXT.pairs]
    variant = next(v for v in artifact.manifest.variants if v.key == key)
    placement = place_variant(artifact, variant, Device("cpu"), this_host())
    one, two = (open_backend(placement, LoadOptions(prepare=False), n_threads) for n_threads in (1, 2))
    together = two.logits(encoded).last
    assert one.logits(encoded).last.tobytes() == together.tobytes()
    for backend in (one, two):
        alone = [backend.logits(single).last for single in singles]
        assert np.concatenate(alone).tobytes() == together.tobytes()
    threads = in_threads(3, lambda i: two.logits(encoded).last.tobytes())
    assert threads == 3 * [together.tobytes()]
    for backend in (one, two):
        backend.close()


def test_a_host_without_the_kernels_writes_the_others_and_says_so(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(pipeline, "kernels_in_use", lambda: None)
    options = Options(precisions=["fp32", "int8"], calibration=TEXT, max_difference=9.0, min_tau=-1.0)
    found = export(str(make_checkpoint()), tmp_path / "artifact", options)
    assert [variant.name for variant in found.manifest.variants] == ["cpu-fp32", "cpu-int8-vnni", "cpu-int8-avx2"]
    assert all(variant.verification is not None for variant in found.manifest.variants)
    (message,) = caplog.messages
    assert message.startswith("left out cpu-fp32-kernels and cpu-int8-kernels: rankrt's own kernels are not installed")


def test_a_checkpoint_that_is_exported_for_this_host_alone_needs_no_such_notice(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(pipeline, "kernels_in_use", lambda: None)
    (tmp_path / "artifact").mkdir()
    pipeline.export_into(str(make_checkpoint()), tmp_path / "artifact")
    assert [variant.name for variant in open_artifact(tmp_path / "artifact").manifest.variants] == ["cpu-fp32"]
    assert not caplog.messages


# The panels.


@pytest.mark.parametrize(("n_in", "n_out"), [(64, 32), (24, 70), (33, 64), (5, 3), (1, 1)])
def test_panels_are_rows_again_in_the_stock_graphs(tmp_path: Path, n_in: int, n_out: int):
    random = np.random.RandomState(0)
    integers = random.randint(-127, 128, (n_out, n_in)).astype(np.int8)
    panels, scales = np.stack([*quads_of(integers)]), np.zeros(-(-n_out // 32) * 32, np.float32)
    assert panels.shape == (len(scales) // 32, -(-n_in // 4), 32, 4)
    for output, input in ((0, 0), (n_out - 1, n_in - 1)):
        assert panels[output // 32, input // 4, output % 32, input % 4] == integers[output, input]
    assert panels.sum(dtype=int) == integers.sum(dtype=int)  # all else is 0
    with DataFiles(tmp_path) as data:
        graph = Graph(weights=None, data=data, precision=Float32())  # type: ignore[arg-type]
        stored = Panels(
            weights=graph.external("data", "panels", np.int8, panels.shape, lambda: [panels]),
            scales=graph.array("scales", scales),
        )
        rows, of_outputs = rows_of(graph, stored, n_in=n_in, n_out=n_out)
        graph.save(tmp_path / "rows.onnx", rows=graph.op("Cast", rows, to=FLOAT), scales=of_outputs)
    found, of_outputs = open_session(tmp_path / "rows.onnx", session_options(1)).run(None, {})
    assert np.array_equal(found.T, integers)
    assert of_outputs.shape == (n_out,)
