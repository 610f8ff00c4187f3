"""A variant depends on the checkpoint and its own options only, whatever is exported beside it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx
import pytest

from rankrt import Reranker
from rankrt.artifact.manifest import Manifest
from rankrt.artifact.precisions import Precision, VariantKey
from rankrt.artifact.source import Hub
from rankrt.cli.main import main
from rankrt_export.calibrate.calibration import calibrate
from rankrt_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from rankrt_export.errors import PartialError, VerificationError
from rankrt_export.job.job import make_job
from rankrt_export.job.options import Options, asked_variants, no_bar
from rankrt_export.job.plan import Plan
from rankrt_export.job.write import write
from rankrt_export.pipeline import export
from rankrt_export.precision.recipes import Recipe
from rankrt_export.text.texts import Texts, sample
from rankrt_export.verify.verify import Limits
from tests.export.conftest import Make

pytestmark = pytest.mark.export

TRAINED = Path(__file__).resolve().parents[2] / "tiny_reranker" / "checkpoint"
KEYS: list[VariantKey] = [
    *asked_variants(["cpu"], ["fp32", "fp16", "w8", "int8", "int4"]),
    *asked_variants(["cuda"], ["fp32", "fp16"]),
    *asked_variants(["tensorrt"], ["fp32", "fp16", "int8", "fp8"]),
]
CALIBRATED = [key for key in KEYS if key.row.is_calibrated]
NO_LIMITS = Limits(max_difference=1e9, min_tau=-1.0)


def few_texts() -> Texts:
    return replace(sample(), questions=sample().questions[:2])


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(str(TRAINED), Hub())


@pytest.fixture(scope="module")
def recipes(checkpoint: Checkpoint) -> dict[VariantKey, Recipe]:
    found, failures = calibrate(checkpoint, few_texts(), dict.fromkeys(CALIBRATED, NO_LIMITS))
    assert not failures
    return {key: calibration.recipe(0) for key, calibration in found.items()}


def models(folder: Path, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield each variant's graph with its tensors in it, wherever in the data files they lie."""
    for variant in manifest.variants:
        yield variant.name, onnx.load(folder / variant.graph).SerializeToString(deterministic=True)


def written(
    checkpoint: Checkpoint, folder: Path, recipes: Mapping[VariantKey, Recipe], *keys: VariantKey
) -> dict[str, bytes]:
    folder.mkdir()
    plan = Plan(recipes={key: recipes.get(key) for key in keys})
    manifest = write(make_job(checkpoint, keys, Options()), plan, folder, no_bar)
    return dict(models(folder, manifest))


def test_every_precision_is_bitwise_the_same_beside_every_other_in_either_order(
    checkpoint: Checkpoint, recipes: dict[VariantKey, Recipe], tmp_path: Path
):
    alone = {key: written(checkpoint, tmp_path / str(key), recipes, key) for key in KEYS}
    for one, other in permutations(KEYS, 2):
        folder = tmp_path / f"{one}-{other}"
        assert written(checkpoint, folder, recipes, one, other) == alone[one] | alone[other], f"{one} and {other}"


def test_files_that_a_precision_does_not_share_are_bitwise_the_same(
    checkpoint: Checkpoint, recipes: dict[VariantKey, Recipe], tmp_path: Path
):
    for key in KEYS:
        written(checkpoint, tmp_path / str(key), recipes, key)
    written(checkpoint, tmp_path / "all", recipes, *KEYS)
    for path in tmp_path.glob("*/*.data"):
        # CUDA's queries in fp16 have weights of their own, with their biases.
        has_other_queries = path.parent.name == "cuda-fp16" and path.name == "layers.fp16.data"
        # What all variants have alike is in the order in which they ask for it.
        if not path.name.startswith("common") and not has_other_queries:
            assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes(), path


def test_a_variant_calibrated_alone_is_the_same_as_among_others(
    checkpoint: Checkpoint, recipes: dict[VariantKey, Recipe], tmp_path: Path
):
    together = written(checkpoint, tmp_path / "together", recipes, *KEYS)
    for key in CALIBRATED:
        found, _ = calibrate(checkpoint, few_texts(), {key: NO_LIMITS})
        own = {key: calibration.recipe(0) for key, calibration in found.items()}
        alone = written(checkpoint, tmp_path / str(key), own, key)
        assert alone == {name: together[name] for name in alone}


@pytest.mark.parametrize("precisions", [["int8", "w8"], ["w8", "int8"]])
def test_a_whole_export_of_two_precisions_has_the_figures_and_scores_of_each_alone(
    tmp_path: Path, precisions: list[Precision]
):
    options = Options(precisions=precisions, calibration=few_texts(), max_difference=5.0, min_tau=0.5)
    both = export(str(TRAINED), tmp_path / "both", options)
    for precision in precisions:
        alone = export(str(TRAINED), tmp_path / precision, replace(options, precisions=[precision]))
        assert set(alone.manifest.variants) <= set(both.manifest.variants)
        with (
            Reranker.load(alone.folder, precision=precision, prepare=False) as one,
            Reranker.load(both.folder, precision=precision, prepare=False) as other,
        ):
            np.testing.assert_array_equal(one.score(sample().pairs[:9]), other.score(sample().pairs[:9]))


def test_a_precision_outside_its_limits_does_not_throw_away_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "artifact"
    assert main(["export", str(TRAINED), str(folder), "--precision", "w8", "fp32", "fp16"]) == 1
    output, errors = capsys.readouterr()
    assert "cpu-w8 differs from PyTorch by up to 2.4 (limit 0.25), with a mean Kendall's tau of 0.94" in errors
    assert f"{folder} was written with " in errors
    assert "cpu-fp32, cpu-fp16 only. Allow more with --max-drift and --min-tau" in errors
    assert "nothing was written" not in errors
    assert "cpu-fp16" in output
    with Reranker.load(folder) as reranker:
        assert reranker.variant.verification is not None


def test_what_is_left_is_the_artifact_that_was_never_asked_for_more(tmp_path: Path):
    with pytest.raises(PartialError) as raised:
        export(str(TRAINED), tmp_path / "more", Options(precisions=["w8", "fp32"]))
    less = export(str(TRAINED), tmp_path / "less", Options())
    assert raised.value.artifact.identity == less.identity
    assert sorted(path.name for path in less.folder.iterdir()) == sorted(
        path.name for path in raised.value.artifact.folder.iterdir()
    )


def test_int8_that_cannot_be_calibrated_does_not_throw_away_fp32(make_checkpoint: Make, tmp_path: Path):
    options = Options(precisions=["fp32", "int8"], max_difference=1e-6)
    with pytest.raises(PartialError, match=r"int8 for vnni is not written.*was written with .*cpu-fp32 only") as raised:
        export(str(make_checkpoint()), tmp_path / "artifact", options)
    assert {variant.precision for variant in raised.value.artifact.manifest.variants} == {"fp32"}


def test_nothing_is_written_if_no_precision_is_within_its_limits(tmp_path: Path):
    with pytest.raises(VerificationError, match=r"cpu-w8 differs .*; cpu-int4 differs .*; nothing was written\."):
        export(str(TRAINED), tmp_path / "artifact", Options(precisions=["w8", "int4"], max_difference=1e-3))
    assert not (tmp_path / "artifact").exists()
