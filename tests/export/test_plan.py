"""What is written after a variant failed, and what calibration decides: values in, values out, no model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt.artifact.precisions import Precision, VariantKey, variant_keys
from rankrt_export.calibrate.calibration import LEAST_INT8_SHARE, Calibration, Drifts, fewest_kept
from rankrt_export.errors import VariantError, VerificationError
from rankrt_export.job.plan import Plan
from rankrt_export.verify.verify import Limits
from tests.export.conftest import torch  # noqa: F401 - the export extra, or none of this

pytestmark = pytest.mark.export
FP32, FP16 = VariantKey(target="cpu", precision="fp32"), VariantKey(target="cpu", precision="fp16")
_, VNNI, AVX2 = variant_keys("cpu", "int8")
LIMITS = Limits(max_difference=1.0, min_tau=0.9)


def drifts_of(*sizes: float) -> Drifts:
    """Return layers of one multiply-add each that add so much to the logit of the only pair."""
    names = tuple(f"layer{i}" for i in range(len(sizes)))
    return Drifts(layers=names, of_pairs=np.array([sizes], np.float64).T, n_weights=np.ones(len(sizes)))


def calibration_of(key: VariantKey, *sizes: float) -> Calibration:
    drifts = drifts_of(*sizes)
    recipes: dict[str, Any] = dict.fromkeys(drifts.layers)
    return Calibration(key=key, layers=recipes, tables={}, drifts=drifts, n_kept=0, text_sha256="0" * 64)


CALIBRATIONS = {key: calibration_of(key, 4.0, 2.0, 1.0, 1.0) for key in (VNNI, AVX2)}


def planned(*keys: VariantKey) -> Plan:
    return Plan.of(keys, {key: found for key, found in CALIBRATIONS.items() if key in keys})


def failed(key: VariantKey, excess: float = float("inf")) -> VariantError:
    return VariantError(f"{key} is off", variant=key, excess=excess)


def test_what_drifts_twice_too_far_keeps_layers_until_a_third_of_the_drift_is_left():
    plan = planned(FP32, VNNI).after(failed(VNNI, excess=2.0), CALIBRATIONS)
    recipe = plan.recipes[VNNI]
    assert recipe is not None
    # Half of the drift is allowed and 0.7 of that is aimed at: 2.8 of 8. Without the first two layers 2 are left.
    assert [layer.name for layer in recipe.kept] == ["layer0", "layer1"]
    assert recipe.share == 0.5
    assert list(plan.recipes) == [FP32, VNNI]
    assert not plan.left_out


def test_what_cannot_be_tightened_is_left_out_and_the_rest_is_written():
    plan = planned(FP32, FP16, VNNI).after(failed(FP16), CALIBRATIONS).after(failed(VNNI, excess=1e9), CALIBRATIONS)
    assert list(plan.recipes) == [FP32]
    assert plan.reasons == "cpu-fp16 is off; cpu-int8-vnni is off"
    assert "--max-drift" in plan.advice


def test_a_precision_is_there_as_long_as_one_processor_has_it():
    one = planned(FP32, VNNI, AVX2).after(failed(VNNI, excess=1e9), CALIBRATIONS)
    assert (one.missing, len(one.left_out)) == ((), 1)
    none = one.after(failed(AVX2, excess=1e9), CALIBRATIONS)
    assert none.reasons == "cpu-int8-vnni is off; cpu-int8-avx2 is off"


def test_what_could_not_be_calibrated_is_left_out_from_the_first():
    plan = Plan.of([FP32, VNNI, AVX2], {AVX2: CALIBRATIONS[AVX2]}, [failed(VNNI)])
    assert list(plan.recipes) == [FP32, AVX2]
    assert not plan.missing


def test_without_numbers_to_loosen_other_precisions_are_the_advice():
    assert planned(FP32, FP16).after(failed(FP16), CALIBRATIONS).advice == "Choose other precisions with --precision"


def test_nothing_is_written_where_fp32_fails():
    with pytest.raises(VerificationError, match="cpu-fp32 is off; nothing was written, as fp32 has to be exact"):
        planned(FP32, FP16).after(failed(FP32), CALIBRATIONS)


def test_fp32_by_kernels_is_left_out_alone():
    """It adds up in another order than ONNX Runtime's graph, which stays."""
    kernels = VariantKey(target="cpu", precision="fp32", instruction_set="kernels")
    assert list(planned(kernels, FP32).after(failed(kernels), CALIBRATIONS).recipes) == [FP32]


@given(sizes=st.lists(st.floats(0.01, 2.0), min_size=1, max_size=40))
def test_as_few_layers_are_kept_as_the_limits_allow(sizes: Sequence[float]):
    drifts = drifts_of(*sorted(sizes, reverse=True))
    asked = []

    def measure(n_kept: int) -> tuple[float, float]:
        asked.append(n_kept)
        return drifts.after(n_kept), 1.0

    def is_enough(n_kept: int) -> bool:
        return drifts.after(n_kept) <= 0.7 * LIMITS.max_difference

    try:
        found = fewest_kept(VNNI, drifts, measure, LIMITS)
    except VariantError as error:
        assert not any(is_enough(n) for n in range(len(sizes)) if drifts.share(n) >= LEAST_INT8_SHARE)
        assert error.variant == VNNI
        return
    assert is_enough(found)
    assert found == 0 or not is_enough(found - 1)
    assert drifts.share(found) >= LEAST_INT8_SHARE
    assert len(asked) <= 2 + np.ceil(np.log2(len(sizes) + 1))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_limits_that_cannot_be_met_say_how_far_it_got(precision: Precision):
    (key,) = variant_keys("tensorrt", precision)
    message = (
        rf"^{precision} for tensorrt is not written: .* within 1 .* With 3 of 4 layers in fp16 it still differs by 9"
    )
    with pytest.raises(VariantError, match=message) as caught:
        fewest_kept(key, drifts_of(9.0, 9.0, 9.0, 9.0), lambda n_kept: (9.0, 0.5), LIMITS)
    assert caught.value.excess == 9
