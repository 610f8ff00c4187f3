"""Tiny artifacts whose scores can be worked out by hand, built in code: a word is worth points, a row their sum."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rankrt.artifact.calibration import (
    CALIBRATION,
    CALIBRATION_VERSION,
    Calibration,
    FittedTo,
    Isotonic,
    Platt,
    calibration_bytes,
)
from rankrt.artifact.manifest import (
    FORMAT_VERSION,
    Artifact,
    Example,
    File,
    Layout,
    Manifest,
    Source,
    Template,
    Variant,
    Verification,
    open_artifact,
    sha256_of,
    write_manifest,
)
from rankrt.artifact.precisions import Precision, Target, VariantKey, variant_keys
from rankrt.backends import Logits
from rankrt.backends.planner import Capacity
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.llm.exits import Keep
from rankrt.loading.model import Model
from rankrt.loading.placement import Placement
from rankrt.text.pairs import Encoded, PairTokenizer
from rankrt.text.tokenizers import LibraryTokenizer

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "zero", "one", "two", "three", "four", "nan"]
POINTS = np.array([0, 0, 0, 0, 0, 1, 2, 3, 4, np.nan], np.float32)
LAYOUTS: dict[Target, Layout] = {"cpu": "packed", "cuda": "varlen", "tensorrt": "padded"}
TEMPLATE = Template(prefix=(0,), separator=(2, 2), suffix=(2,))
VERIFICATION = Verification(
    reference="by hand",
    text_sha256="0" * 64,
    n_queries=1,
    n_pairs=2,
    max_difference=0.0,
    mean_difference=0.0,
    min_tau=1.0,
    mean_tau=1.0,
    top_k=3,
    top_k_overlap=1.0,
)


def tiny_tokenizer() -> Tokenizer:
    """Words between spaces, joined as XLM-R joins pairs."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer


def tiny_artifact(
    folder: Path,
    *,
    layout: Layout = "packed",
    precisions: Iterable[Precision] = ("fp32",),
    targets: Iterable[Target] = ("cpu",),
    for_kernels: Iterable[Precision] = (),
    verification: Verification | None = VERIFICATION,
    gpu_verification: Verification | None = None,
    max_length: int = 64,
    points: Mapping[Precision, np.ndarray] | None = None,
    tokenizer: Tokenizer | None = None,
    examples: tuple[Example, ...] = (Example(query="one", passage="two three", logit=6.0),),
) -> Artifact:
    """Write an artifact in which a score is the sum of the points of the row's words, which a precision may change.

    int8 on a CPU is the graph that runs on every processor. Last are graphs for rankrt's kernels, in such precisions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or tiny_tokenizer()).save(str(folder / "tokenizer.json"))
    variants = []
    keys = [variant_keys(target, precision)[-1] for target, precision in product(targets, precisions)]
    keys += [VariantKey(target="cpu", precision=name, instruction_set="kernels") for name in for_kernels]
    for key in keys:
        target, precision = key.target, key.precision
        graph = f"{key}.onnx"
        data = f"points.{precision}.data" if target == "cpu" else f"points.{target}.{precision}.data"
        if key.needs_kernels:
            data = f"points.{key}.data"
        worth, of_target = (points or {}).get(precision, POINTS), layout if target == "cpu" else LAYOUTS[target]
        if precision == "bf16":
            of_target = "spread"
        model = stacked_graph() if of_target == "stacked" else _GRAPHS[of_target](worth)
        if key.needs_kernels:
            model = kernels_graph(worth)
        onnx.save(model, folder / graph, save_as_external_data=True, location=data, size_threshold=64)
        variants.append(
            Variant(
                target=target,
                precision=precision,
                layout=of_target,
                graph=graph,
                data=(data,),
                verification=verification if target == "cpu" else gpu_verification,
                quantization=None,
                instruction_set=key.instruction_set,
            )
        )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        producer="rankrt 0",
        name="tiny",
        architecture="SumOfPoints",
        source=Source(id="tests/tiny", revision=None, weights_sha256="0" * 64),
        tokenizer="tokenizer.json",
        template=TEMPLATE,
        max_length=max_length,
        examples=examples,
        variants=tuple(variants),
        files={
            path.name: File(n_bytes=path.stat().st_size, sha256=sha256_of(path)) for path in sorted(folder.iterdir())
        },
    )
    write_manifest(manifest, folder)
    return open_artifact(folder)


def calibrate(artifact: Artifact, map: Platt | Isotonic | None = None, cutoff_layer: int | None = None) -> Artifact:
    """Write a calibration beside an artifact's manifest. By default a logit of 3 is even odds."""
    found = Calibration(
        format_version=CALIBRATION_VERSION,
        artifact=artifact.identity,
        variant="cpu-fp32",
        cutoff_layer=cutoff_layer,
        map=map or Platt(slope=2.0, intercept=-6.0),
        data=FittedTo(sha256="0" * 64, n_queries=2, n_pairs=40, n_relevant=20),
        error_before=0.2,
        error_after=0.01,
    )
    (artifact.folder / CALIBRATION).write_bytes(calibration_bytes(found))
    return open_artifact(artifact.folder)


def packed_graph(points: np.ndarray = POINTS) -> onnx.ModelProto:
    """Running sums of points, read where rows start and stop. Points are whole numbers, so sums are exact."""
    nodes = [
        helper.make_node("Gather", ["points", "input_ids"], ["token_points"]),
        helper.make_node("CumSum", ["token_points", "axis_0"], ["running"]),
        helper.make_node("Concat", ["zero", "running"], ["sums"], axis=0),
        helper.make_node("Gather", ["sums", "row_offsets"], ["at_offsets"]),
        helper.make_node("Slice", ["at_offsets", "first", "last"], ["before"]),
        helper.make_node("Slice", ["at_offsets", "second", "end"], ["after"]),
        helper.make_node("Sub", ["after", "before"], ["logits"]),
    ]
    constants = {
        "points": points,
        "axis_0": np.array(0),
        "zero": np.zeros(1, np.float32),
        "first": np.array([0]),
        "last": np.array([-1]),
        "second": np.array([1]),
        "end": np.array([2**62]),
    }
    inputs = [("input_ids", TensorProto.INT32, ["n_tokens"]), ("row_offsets", TensorProto.INT32, ["n_offsets"])]
    return _model(nodes, constants, inputs)


def kernels_graph(points: np.ndarray = POINTS) -> onnx.ModelProto:
    """The packed graph, where a layer of rankrt's own takes a word's points from the first of its many features."""
    n_features = 2048  # 64 KB of panels, which are mapped
    table = np.zeros((len(points), n_features), np.float32)
    table[:, 0] = points
    panels = np.zeros((1, n_features // 4, 32, 4), np.int8)
    panels[0, 0, 0, 0] = 1
    sums = np.zeros(32, np.int32)
    sums[0] = 1
    model = packed_graph(points)
    gather, *after = model.graph.node
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["features"]),
        helper.make_node(
            "RoundTokens", ["features", ""], ["bytes", "steps"], domain="rankrt", zero_point=128, floor=1e-12
        ),
        helper.make_node(
            "Linear",
            ["bytes", "steps", "panels", "scales", "panel_sums"],
            ["column"],
            domain="rankrt",
            n_outputs=1,
            zero_point=128,
            gelu=0,
        ),
        helper.make_node("Squeeze", ["column", "axis_1"], gather.output),
        *after,
    ]
    constants = {
        "table": table,
        "panels": panels,
        "scales": np.ones(32, np.float32),
        "panel_sums": sums,
        "axis_1": np.array([1]),
    }
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    model.opset_import.append(helper.make_opsetid("rankrt", 1))
    return model


def stacked_graph() -> onnx.ModelProto:
    """The sum of points of each row; words of the passage count double, which only token types can tell."""
    nodes = [
        helper.make_node("Gather", ["points", "input_ids"], ["token_points"]),
        helper.make_node("Cast", ["token_type_ids"], ["is_passage"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["is_passage", "unit"], ["weight"]),
        helper.make_node("Mul", ["token_points", "weight"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axis_1"], ["logits"], keepdims=0),
    ]
    constants = {"points": POINTS, "unit": np.ones(1, np.float32), "axis_1": np.array([1])}
    shape = ["n_rows", "n_tokens"]
    inputs = [("input_ids", TensorProto.INT64, shape), ("token_type_ids", TensorProto.INT64, shape)]
    return _model(nodes, constants, inputs)


def varlen_graph(points: np.ndarray = POINTS) -> onnx.ModelProto:
    """The sum of points of each row, put where token_offset says; the one first position of each row is checked."""
    nodes = [
        helper.make_node("Gather", ["points", "input_ids"], ["token_points"]),
        helper.make_node("Equal", ["positions", "position_0"], ["begins"]),
        helper.make_node("Cast", ["begins"], ["beginnings"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["token_points", "beginnings"], ["worth"]),
        helper.make_node("Reshape", ["token_offset", "flat"], ["places"]),
        helper.make_node("Shape", ["input_ids"], ["n_tokens"]),
        helper.make_node("Slice", ["places", "axis_0", "n_tokens"], ["token_places"]),
        helper.make_node("Shape", ["places"], ["n_places"]),
        helper.make_node("ConstantOfShape", ["n_places"], ["empty"]),
        helper.make_node("ScatterElements", ["empty", "token_places", "worth"], ["filled"], axis=0),
        helper.make_node("Shape", ["token_offset"], ["shape"]),
        helper.make_node("Reshape", ["filled", "shape"], ["matrix"]),
        helper.make_node("ReduceSum", ["matrix", "axis_1"], ["sums"], keepdims=0),
        helper.make_node("Sub", ["sums", "one"], ["logits"]),
    ]
    constants = {
        "points": points,
        "position_0": np.array(0, np.int32),
        "flat": np.array([-1]),
        "axis_0": np.array([0]),
        "axis_1": np.array([1]),
        "one": np.ones(1, np.float32),
    }
    inputs = [
        ("input_ids", TensorProto.INT32, ["n_tokens"]),
        ("positions", TensorProto.INT32, ["n_tokens"]),
        ("row_offsets", TensorProto.INT32, ["n_offsets"]),
        ("token_offset", TensorProto.INT32, ["n_rows", "longest"]),
    ]
    return _model(nodes, constants, inputs)


def padded_graph(points: np.ndarray = POINTS) -> onnx.ModelProto:
    """The sum of points of each row up to its length."""
    nodes = [
        helper.make_node("Gather", ["points", "input_ids"], ["token_points"]),
        helper.make_node("Shape", ["input_ids"], ["longest"], start=1),
        helper.make_node("Squeeze", ["longest", "axis_0"], ["stop"]),
        helper.make_node("Range", ["start", "stop", "step"], ["places"]),
        helper.make_node("Cast", ["lengths"], ["lengths_64"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["lengths_64", "axis_1"], ["ends"]),
        helper.make_node("Less", ["places", "ends"], ["is_token"]),
        helper.make_node("Where", ["is_token", "token_points", "nothing"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "axis_1"], ["logits"], keepdims=0),
    ]
    constants = {
        "points": points,
        "axis_0": np.array([0]),
        "axis_1": np.array([1]),
        "start": np.array(0),
        "step": np.array(1),
        "nothing": np.array(0, np.float32),
    }
    inputs = [
        ("input_ids", TensorProto.INT32, ["n_rows", "longest"]),
        ("lengths", TensorProto.INT32, ["n_rows"]),
    ]
    return _model(nodes, constants, inputs)


_GRAPHS = {"packed": packed_graph, "varlen": varlen_graph, "padded": padded_graph, "spread": varlen_graph}


class FakeBackend:
    """Answers the number of tokens of each row, and remembers the rows that it was given."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.asked: list[Encoded] = []
        self.is_closed = False

    def logits(self, encoded: Encoded, exits: Sequence[int] = (), keep: Keep | None = None) -> Logits:
        self.asked.append(encoded)
        return Logits(values=encoded.lengths.astype(np.float32)[None])

    def run(self, encoded: Encoded, exits: Sequence[int] = (), *, is_wide: bool) -> Logits:
        return self.logits(encoded, exits)

    def close(self) -> None:
        self.is_closed = True


def model_of(artifact: Artifact, backend: FakeBackend, device: Device = Device("cpu")) -> Model:  # noqa: B008 - frozen
    """A model of an artifact's first variant that is put together from parts."""
    placement = Placement(artifact=artifact, variant=artifact.manifest.variants[0], device=device, host=this_host())
    tokenizer = PairTokenizer(LibraryTokenizer(tiny_tokenizer()), TEMPLATE)
    return Model(placement, tokenizer, find=lambda precision: placement, load=lambda chosen: backend)


def in_threads(n_threads: int, work: "Sequence[object] | object") -> list[object]:
    """Call `work(i)` in n threads that start together; return the results in order."""
    results: list[object] = [None] * n_threads
    barrier = threading.Barrier(n_threads)

    def call(i: int) -> None:
        barrier.wait()
        results[i] = work(i)  # type: ignore[operator]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _model(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], inputs: list[tuple[str, int, list[str]]]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "points",
        [helper.make_tensor_value_info(*described) for described in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n_rows"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
