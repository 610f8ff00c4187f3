"""The graphs for OpenVINO: ONNX Runtime computes them in fp32 anywhere, OpenVINO in bf16 where the processor has it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import Artifact
from rankrt.backends.batch import BATCHES
from rankrt.backends.openvino import why_not_bf16
from rankrt.backends.planner import divide
from rankrt.backends.session import open_session, session_options
from rankrt.host.cpu import this_machine
from rankrt.text.pairs import Encoded
from rankrt_export.cli import notices
from rankrt_export.errors import CheckpointError
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample
from tests.export.conftest import Make, transformers
from tests.export.decoders import make_decoder
from tests.export.test_gpu_graphs import TENSORRT_OPERATORS, graph_of, variant_of
from tests.export.test_gte import new_checkpoint
from tests.export.test_modernbert import SMALL
from tests.support import in_threads

pytestmark = pytest.mark.export

CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny_reranker" / "checkpoint"
REASON = why_not_bf16(this_machine())
needs_bf16 = pytest.mark.skipif(REASON is not None, reason=str(REASON))
WINDOWED: dict[str, Any] = SMALL | {"classifier_pooling": "mean"}
# 0.32 was measured, where logits are from -5 to 9.
BF16_DRIFT = 0.6
BF16 = Options(precisions=["fp32", "bf16"], is_verified=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(str(CHECKPOINT), tmp_path_factory.mktemp("trained") / "artifact", BF16)


def by_onnxruntime(artifact: Artifact, encoded: Encoded) -> Float32Array:
    """Return the logits of the graph for OpenVINO in fp32."""
    session = open_session(artifact.path("cpu-bf16.onnx"), session_options(1))
    declared, logits = {node.name for node in session.get_inputs()}, np.empty(encoded.n_rows, np.float32)
    for rows in divide(encoded.lengths, 512, "spread"):
        feed = BATCHES["spread"](encoded, rows)
        logits[rows] = session.run(None, {name: feed[name] for name in declared})[0]
    return logits


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("XLMRobertaConfig", {}),
        ("BertConfig", {"type_vocab_size": 2}),
        ("ModernBertConfig", WINDOWED),
        ("ModernBertConfig", WINDOWED | {"num_hidden_layers": 3, "classifier_pooling": "cls"}),
    ],
)
def test_the_graph_computes_what_the_one_for_cpus_does(
    make_checkpoint: Make, tmp_path: Path, config: str, changes: dict[str, Any]
):
    assert_same_logits(export(str(make_checkpoint(config, **changes)), tmp_path / "artifact", BF16))


@pytest.mark.skipif(not hasattr(transformers, "GteConfig"), reason="transformers has GTE since 5.23")
def test_the_graph_of_gte_does_too(tmp_path: Path):
    checkpoint = new_checkpoint(tmp_path / "gte", type_vocab_size=2, has_token_types=True)
    assert_same_logits(export(str(checkpoint), tmp_path / "artifact", BF16))


def assert_same_logits(artifact: Artifact) -> None:
    """Compare the graph for OpenVINO, in fp32, with the one that is verified against PyTorch."""
    with Reranker.load(artifact.folder, precision="fp32", prepare=False) as reranker:
        encoded = reranker.encode(sample().pairs[::3])
        expected = reranker._scorer().backend.logits(encoded).last
    assert expected.std() > 0.2  # 0.40 with transformers 4.57, whose weights are drawn in another order
    # Only the order of sums differs, in logits of up to 60.
    np.testing.assert_allclose(by_onnxruntime(artifact, encoded), expected, atol=1e-4, rtol=2e-5)


def test_bf16_adds_a_graph_to_fp32_and_next_to_no_weights(trained: Artifact):
    fp32, bf16 = (variant_of(trained, name) for name in ("cpu-fp32", "cpu-bf16"))
    assert (bf16.name, bf16.layout) == ("cpu-bf16", "spread")
    assert {name for name in fp32.data if name != "common.data"} <= {*bf16.data}
    new = {*bf16.files} - {*fp32.files}
    assert sum(trained.manifest.files[name].n_bytes for name in new) < 0.01 * trained.n_weight_bytes(fp32)


def test_the_operators_are_onnxs_own(trained: Artifact):
    model = graph_of(trained, "cpu-bf16")
    assert {node.domain for node in model.graph.node} == {""}
    assert {node.op_type for node in model.graph.node} <= TENSORRT_OPERATORS | {"Flatten", "Min", "Slice", "Sub"}


def test_a_variant_that_this_host_cannot_run_says_why_it_is_not_verified(trained: Artifact):
    said = [notice for notice in notices(trained) if "cpu-bf16" in notice]
    assert len(said) == 1
    assert f"rankrt prepare {trained.folder} --precision bf16" in said[0]


def test_a_decoder_is_refused(tmp_path: Path):
    folder = make_decoder(tmp_path / "decoder", "Gemma")
    with pytest.raises(CheckpointError, match=r"cpu-bf16 is not written for a [A-Za-z0-9]+, which decoder is"):
        export(str(folder), tmp_path / "artifact", BF16)


@needs_bf16
def test_bf16_is_near_fp32_and_no_more_exact_than_brain_floats(trained: Artifact):
    pairs = sample().pairs
    with Reranker.load(trained.folder, precision="fp32", prepare=False) as exact:
        expected = exact.score(pairs)
    with Reranker.load(trained.folder, precision="bf16") as reranker:
        difference = np.abs(reranker.score(pairs) - expected).max()
    # 0.002 is what fp32 with rounded weights alone would be above.
    assert 0.002 < difference < BF16_DRIFT


@needs_bf16
def test_a_score_depends_on_its_pair_only_to_the_last_bit(trained: Artifact):
    pairs = sample().pairs
    with (
        Reranker.load(trained.folder, precision="bf16", n_threads=1) as one,
        Reranker.load(trained.folder, precision="bf16", n_threads=2) as two,
    ):
        together = two.score(pairs).tobytes()
        assert np.concatenate([two.score([pair]) for pair in pairs]).tobytes() == together
        assert two.score(pairs[::-1])[::-1].tobytes() == together
        assert one.score(pairs).tobytes() == together
        chance = np.random.default_rng(0)
        for _ in range(5):
            rows = chance.permutation(len(pairs))[:20]
            found = two.score([pairs[row] for row in rows])
            assert found.tobytes() == np.frombuffer(together, np.float32)[rows].tobytes()
        # Callers take turns with one compiled model, whose requests and kernels they share.
        shares = [pairs[i::3] for i in range(3)]
        found_by_callers = in_threads(3, lambda i: two.score(shares[i]).tobytes())
        assert found_by_callers == [np.frombuffer(together, np.float32)[i::3].tobytes() for i in range(3)]
