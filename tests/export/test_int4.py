"""int4: what is packed comes back, each block by its own scale, and encoders take it as decoders do."""

from pathlib import Path

import numpy as np
import pytest

from rankrt import Reranker
from rankrt_export.pipeline import Options, export
from rankrt_export.precision.int4 import BLOCK_SIZE, pack, rounded_blocks
from tests.export.conftest import Make

pytestmark = pytest.mark.export


def test_weights_are_off_by_half_a_step_of_their_block_at_most():
    weight = np.random.RandomState(0).randn(6, 80).astype(np.float32)
    weight[0, 0] = 100  # an outlier coarsens its own block only
    steps, scales = rounded_blocks(weight)
    assert steps.min() >= 1
    assert steps.max() <= 15
    widened = ((steps.astype(np.float32) - 8) * scales[..., None]).reshape(6, -1)
    assert (np.abs(widened[:, :80] - weight) <= 0.5001 * scales.repeat(BLOCK_SIZE, axis=1)[:, :80]).all()
    assert (widened[:, 80:] == 0).all()


def test_two_steps_share_a_byte_the_first_in_its_lower_half():
    assert pack(np.array([[[1, 15, 8, 0]]], np.uint8)).tolist() == [[[0xF1, 0x08]]]


def test_an_encoder_in_int4_is_an_eighth_of_its_layers(make_checkpoint: Make, tmp_path: Path):
    options = Options(precisions=["fp32", "int4"], max_difference=99.0, min_tau=-1.0)
    artifact = export(str(make_checkpoint()), tmp_path / "artifact", options)
    sizes = {name: file.n_bytes for name, file in artifact.manifest.files.items()}
    assert sizes["layers.int4.data"] < 0.17 * sizes["layers.fp32.data"]  # and a scale for 32 weights
    with Reranker.load(artifact.folder) as chosen:
        assert chosen.variant.precision == "fp32"
