"""DeBERTa beside transformers' own class, in the shapes that its checkpoints have."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rankrt import Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.artifact.precisions import Precision
from rankrt.backends.batch import padded
from rankrt_export.architectures.deberta import buckets
from rankrt_export.errors import CheckpointError
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import Question, Texts, sample
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.tensorrt_on_cpu import GraphOnCpu
from tests.export.conftest import change_config, checkpoint_of, torch
from tests.export.test_gpu_graphs import CUDA_KERNELS, TENSORRT_OPERATORS, every_row, graph_of, variant_of

pytestmark = pytest.mark.export

# Of DeBERTa-v3, and so of mxbai-rerank-v1.
V3: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 64,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "type_vocab_size": 0,
    "position_biased_input": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "as v3 is published": {},
    "keys see distances alone": {"pos_att_type": "p2c"},
    "queries see distances alone, one layer": {"pos_att_type": ["c2p"], "num_hidden_layers": 1},
    "distances have layers of their own": {"share_att_key": False},
    "a vector for each distance": {"position_buckets": -1, "norm_rel_ebd": "none", "max_relative_positions": 40},
    "places and types, and narrow words": {
        "position_biased_input": True,
        "type_vocab_size": 2,
        "has_token_types": True,
        "embedding_size": 16,
    },
}


def new_checkpoint(folder: Path, **changes: Any) -> Path:
    """Write a random checkpoint."""
    return checkpoint_of(folder, "DebertaV2Config", **V3 | changes)


def few(n: int) -> Texts:
    """Return a few of the sample's questions with two passages, and a long row."""
    ours = sample()
    long = Question(query="why", pos=("far " * 130,), neg=("",))
    return Texts(questions=[*(question.first(2) for question in ours.questions[:n]), long], sha256=ours.sha256)


@pytest.fixture
def short_sample(monkeypatch: pytest.MonkeyPatch) -> Texts:
    """Verify on a few pairs: transformers takes 60 ms for one, as its layers look up each pair of tokens."""
    texts = few(5)
    monkeypatch.setattr("rankrt_export.job.job.sample", lambda: texts)
    return texts


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(tmp_path: Path, short_sample: Texts, shape: str):
    artifact = export(str(new_checkpoint(tmp_path / "checkpoint", **SHAPES[shape])), tmp_path / "artifact", Options())
    variant = variant_of(artifact, "cpu-fp32")
    assert variant.layout == "packed"
    assert variant.verification is not None
    # fp32: only the order of summation differs, in logits of up to 10.
    assert variant.verification.max_difference < 1e-4
    with Reranker.load(artifact.folder, precision="fp32") as reranker:
        together = reranker.score(short_sample.pairs)
        alone = np.concatenate([reranker.score([pair]) for pair in short_sample.pairs])
        assert reranker.encode(short_sample.pairs).lengths.max() == 512
    assert together.tobytes() == alone.tobytes()
    assert together.std() > 0.3


@pytest.mark.parametrize(("n_buckets", "max_distance"), [(256, 512), (64, 514), (32, 100), (256, 1024)])
def test_distances_share_the_vectors_that_they_share_in_transformers(n_buckets: int, max_distance: int):
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    n = max_distance
    row = torch.zeros(n, 1)
    expected = build_relative_position(row, row, bucket_size=n_buckets, max_position=max_distance)[0].numpy()
    places = np.arange(n)
    found = buckets(n, n_buckets=n_buckets, max_distance=max_distance)[places[:, None] - places + n - 1]
    assert (found == np.clip(expected + n_buckets, 0, 2 * n_buckets - 1)).all()


def test_every_precision_is_within_its_limits(tmp_path: Path, short_sample: Texts):
    """Random weights of this size amplify what 8 bits round away, and two of a query's two passages swap places."""
    precisions: list[Precision] = ["fp32", "fp16", "int8", "w8"]
    folder = new_checkpoint(tmp_path / "checkpoint", gain=6.0, num_hidden_layers=2)
    artifact = export(str(folder), tmp_path / "artifact", Options(precisions=precisions, max_difference=1, min_tau=0.3))
    assert {variant.precision for variant in artifact.manifest.variants} == set(precisions)
    assert all(variant.verification is not None for variant in artifact.manifest.variants)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act = 'silu'; only 'gelu'"),
        ({"pooler_hidden_act": "tanh"}, "pooler_hidden_act = 'tanh'; only 'gelu'"),
        ({"conv_kernel_size": 3}, "conv_kernel_size = 3; only 0"),
        ({"relative_attention": False}, "relative_attention = False; only True"),
        ({"relative_attention": None}, "relative_attention = False; only True"),
        ({"pos_att_type": None}, r"pos_att_type = \[\]; only 'c2p', 'p2c' and both"),
        ({"pos_att_type": ["p2p"]}, r"pos_att_type = \['p2p'\]; only 'c2p', 'p2c' and both"),
        ({"position_buckets": 1.5}, "position_buckets"),
        ({"model_type": "deberta"}, "model_type = 'deberta', not 'deberta-v2'"),
        ({"num_hidden_layers": None}, "has no num_hidden_layers"),
    ],
)
def test_what_is_not_implemented_is_named(tmp_path: Path, changes: dict[str, Any], message: str):
    folder = new_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1)
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        export(str(folder), tmp_path / "artifact", Options(is_verified=False))


# GPUs.

# fp32 differs by the order of summation; fp16 rounds every state to 11 bits, in logits of up to 10.
GPU_TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.1}
RELATIVE_KERNELS = {
    *("Add", "CumSum", "GatherElements", "Gelu", "LayerNormalization", "Less", "MatMul", "Mul", "Softmax"),
    *("Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
}
RELATIVE_OPERATORS = {"CumSum", "GatherElements", "Slice", "Sub"}


@pytest.fixture(scope="module")
def gpu_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = new_checkpoint(tmp_path_factory.mktemp("deberta") / "checkpoint", gain=6.0)
    options = Options(precisions=["fp32", "fp16"], targets=["cpu", "cuda", "tensorrt"], is_verified=False)
    return export(str(folder), folder.parent / "artifact", options)


@pytest.mark.parametrize("precision", GPU_TOLERANCES)
def test_graphs_for_gpus_have_the_scores_of_the_cpu_s(gpu_artifact: Artifact, precision: Precision):
    rows = RowMaker.open(gpu_artifact)
    encoded = rows.encode(few(3).pairs)
    with Reranker.load(gpu_artifact.folder, precision="fp32", prepare=False) as reranker:
        expected = reranker._scorer().backend.logits(encoded).last
    feed = padded(encoded, every_row(encoded))
    for target in ("tensorrt", "cuda"):
        logits = GraphOnCpu(gpu_artifact, variant_of(gpu_artifact, f"{target}-{precision}"), rows).run(feed)
        np.testing.assert_allclose(logits, expected, atol=GPU_TOLERANCES[precision], rtol=0)
    assert np.ptp(expected) > 0.3


@pytest.mark.parametrize("precision", GPU_TOLERANCES)
def test_graphs_for_gpus_have_operators_that_run_there(gpu_artifact: Artifact, precision: Precision):
    nodes = graph_of(gpu_artifact, f"cuda-{precision}").graph.node
    assert {(node.domain, node.op_type) for node in nodes} <= {
        *CUDA_KERNELS,
        *(("", name) for name in RELATIVE_KERNELS),
        ("com.microsoft", "FusedMatMul"),
    }
    nodes = graph_of(gpu_artifact, f"tensorrt-{precision}").graph.node
    assert {node.op_type for node in nodes} <= {*TENSORRT_OPERATORS, *RELATIVE_OPERATORS}


@pytest.mark.parametrize("name", ["tensorrt-fp32", "tensorrt-fp16", "cuda-fp32", "cuda-fp16"])
def test_a_graph_is_valid_and_its_types_can_be_inferred(gpu_artifact: Artifact, name: str):
    onnx.checker.check_model(gpu_artifact.path(f"{name}.onnx"), full_check=name.startswith("tensorrt"))
    onnx.shape_inference.infer_shapes(graph_of(gpu_artifact, name), check_type=True, strict_mode=True, data_prop=True)
