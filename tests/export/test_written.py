"""The written XLM-R graph against transformers: every shape, dtype and file layout gives the model's own logits."""

from pathlib import Path

import numpy as np
import pytest

from rankrt import Reranker
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample
from tests.export.conftest import Make, torch, transformers
from tests.export.test_gpu_graphs import variant_of

pytestmark = pytest.mark.export

SHAPES = {
    "base": {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 3},
    "large": {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128},
    "v2-m3": {"num_hidden_layers": 4, "max_position_embeddings": 2050},
    "one layer": {"num_hidden_layers": 1},
    "another padding id": {"pad_token_id": 3, "max_position_embeddings": 516},
}


def logits_of_transformers(folder: Path, reranker: Reranker, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Score rows one at a time, without padding."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    encoded = reranker.encode(pairs)
    with torch.inference_mode():
        rows = [torch.tensor(encoded.row(i)[None].astype(np.int64)) for i in range(encoded.n_rows)]
        return np.array([model(row).logits[0, 0].item() for row in rows], np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(make_checkpoint: Make, tmp_path: Path, shape: str):
    folder = make_checkpoint(**SHAPES[shape])
    export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    with Reranker.load(tmp_path / "artifact", precision="fp32") as reranker:
        pairs = sample().pairs
        expected = logits_of_transformers(folder, reranker, pairs)
        # fp32: only the order of summation differs.
        np.testing.assert_allclose(reranker.score(pairs), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.1


@pytest.mark.parametrize("architecture", ["RobertaConfig", "CamembertConfig"])
def test_the_rest_of_the_family_is_written_too(make_checkpoint: Make, tmp_path: Path, architecture: str):
    artifact = export(str(make_checkpoint(architecture)), tmp_path / "artifact", Options())
    assert artifact.manifest.variants[0].layout == "packed"


def test_a_long_row_reaches_the_last_position(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint(max_position_embeddings=2050)
    (folder / "tokenizer_config.json").unlink()
    export(str(folder), tmp_path / "artifact", Options(is_verified=False))
    with Reranker.load(tmp_path / "artifact", precision="fp32", max_length=2048) as reranker:
        pairs = [("why", "long " * 1000)]
        assert reranker.encode(pairs).lengths.tolist() == [2048]
        np.testing.assert_allclose(
            reranker.score(pairs), logits_of_transformers(folder, reranker, pairs), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_are_read_as_they_are(make_checkpoint: Make, tmp_path: Path, dtype: str):
    folder = make_checkpoint()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    artifact = export(str(folder), tmp_path / "artifact", Options())
    verification = artifact.manifest.variants[0].verification
    assert verification is not None
    assert verification.max_difference < 1e-4


def test_shards_and_pickled_weights_give_the_same_artifact(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint()
    whole = export(str(folder), tmp_path / "whole", Options(is_verified=False))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    pickled = export(str(folder), tmp_path / "pickled", Options(is_verified=False))
    (folder / "pytorch_model.bin").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert (folder / "model.safetensors.index.json").exists()
    sharded = export(str(folder), tmp_path / "sharded", Options(is_verified=False))
    assert whole.manifest.files == pickled.manifest.files == sharded.manifest.files


def test_variants_share_what_they_have_alike(make_checkpoint: Make, tmp_path: Path):
    artifact = export(str(make_checkpoint()), tmp_path / "artifact", Options(precisions=["fp32", "fp16"]))
    fp32, fp16 = (variant_of(artifact, name) for name in ("cpu-fp32", "cpu-fp16"))
    assert set(fp32.data) & set(fp16.data) == {"common.data"}
    sizes = {name: file.n_bytes for name, file in artifact.manifest.files.items()}
    assert sizes["layers.fp16.data"] * 2 == sizes["layers.fp32.data"]


def test_a_score_is_bitwise_the_same_in_every_company(make_checkpoint: Make, tmp_path: Path):
    export(str(make_checkpoint()), tmp_path / "artifact", Options(precisions=["fp32", "fp16"]))
    pairs = sample().pairs
    for precision in ("fp32", "fp16"):
        with (
            Reranker.load(tmp_path / "artifact", precision=precision, n_threads=2) as two,
            Reranker.load(tmp_path / "artifact", precision=precision, n_threads=1) as one,
            Reranker.load(tmp_path / "artifact", precision=precision, n_threads=2, prepare=False) as wide,
        ):
            together = two.score(pairs).tobytes()
            assert np.concatenate([two.score([pair]) for pair in pairs]).tobytes() == together
            assert two.score(pairs[::-1])[::-1].tobytes() == together
            assert one.score(pairs).tobytes() == together
            assert wide.score(pairs).tobytes() == together
