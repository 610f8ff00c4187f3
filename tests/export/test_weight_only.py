"""w8 and int4: what is packed comes back, each block by its own scale, and encoders take it as decoders do."""

from pathlib import Path

import numpy as np
import pytest

from rankrt import Reranker
from rankrt_export.pipeline import Options, export
from rankrt_export.precision.weight_only import INT4, W8, WeightOnly
from tests.export.conftest import Make

pytestmark = pytest.mark.export


@pytest.mark.parametrize("form", [W8, INT4], ids=lambda form: form.name)
def test_weights_are_off_by_half_a_step_of_their_block_at_most(form: WeightOnly):
    weight = np.random.RandomState(0).randn(6, 200).astype(np.float32)
    weight[0, 0] = 100  # an outlier coarsens its own block only
    steps, scales = form.round(weight)
    zero = 2 ** (form.bits - 1)
    assert (steps.min(), steps.max()) == (1, 2 * zero - 1)
    widened = ((steps.astype(np.float32) - zero) * scales[..., None]).reshape(6, -1)
    allowed = 0.5001 * scales.repeat(form.block_size, axis=1)[:, :200]
    assert (np.abs(widened[:, :200] - weight) <= allowed).all()
    assert (widened[:, 200:] == 0).all()


def test_two_steps_of_4_bits_share_a_byte_the_first_in_its_lower_half():
    steps = np.array([[[1, 15, 8, 0]]], np.uint8)
    assert INT4.pack(steps).tolist() == [[[0xF1, 0x08]]]
    assert W8.pack(steps).tolist() == steps.tolist()


def test_an_encoder_is_a_quarter_or_an_eighth_of_its_layers(make_checkpoint: Make, tmp_path: Path):
    options = Options(precisions=["fp32", "w8", "int4"], max_difference=99.0, min_tau=-1.0)
    artifact = export(str(make_checkpoint()), tmp_path / "artifact", options)
    sizes = {name: file.n_bytes for name, file in artifact.manifest.files.items()}
    assert sizes["layers.int4.data"] < 0.17 * sizes["layers.fp32.data"]  # and a scale for 32 weights
    with Reranker.load(artifact.folder) as chosen:
        assert chosen.variant.precision == "fp32"
