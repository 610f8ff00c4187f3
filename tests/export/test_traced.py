"""Other cross-encoders, by tracing: the same command, the same check."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt_export.errors import CheckpointError
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample
from tests.export.conftest import Make, change_config

pytestmark = [
    pytest.mark.export,
    # The exporter's own parts warn about each other's futures; what they make is verified below.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

OTHERS: dict[str, dict[str, Any]] = {
    "AlbertConfig": {"type_vocab_size": 2, "max_position_embeddings": 512, "embedding_size": 16},
    "MPNetConfig": {"vocab_size": 400},
}


@pytest.mark.parametrize("config", OTHERS)
def test_a_traced_model_is_verified_like_a_written_one(make_checkpoint: Make, tmp_path: Path, config: str):
    artifact = export(str(make_checkpoint(config, **OTHERS[config])), tmp_path / "artifact", Options())
    (variant,) = artifact.manifest.variants
    assert variant.layout == "stacked"
    assert variant.verification is not None
    assert variant.verification.max_difference < 1e-4
    pairs = sample().pairs
    with Reranker.load(artifact.folder) as reranker:
        together = reranker.score(pairs)
        alone = np.concatenate([reranker.score([pair]) for pair in pairs])
    assert together.tobytes() == alone.tobytes()
    assert together.std() > 0.01


def test_other_precisions_of_a_traced_model_are_refused(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint("AlbertConfig", **OTHERS["AlbertConfig"])
    with pytest.raises(CheckpointError, match="exported by tracing, for the CPU in fp32 only"):
        export(str(folder), tmp_path / "artifact", Options(precisions=["fp16"]))
    assert not (tmp_path / "artifact").exists()


def test_an_architecture_that_transformers_does_not_know_is_refused(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint()
    change_config(folder, architectures=["NovelForSequenceClassification"], model_type="novel")
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        export(str(folder), tmp_path / "artifact", Options())


def test_a_head_that_is_not_in_the_file_is_not_drawn_at_random(make_checkpoint: Make, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    folder = make_checkpoint("AlbertConfig", **OTHERS["AlbertConfig"])
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks the weights classifier\.weight: its scores would be random"):
        export(str(folder), tmp_path / "artifact", Options())
