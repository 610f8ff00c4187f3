"""Numbers beyond half precision's 65,504, which models trained in bfloat16 have: right, or refused, never infinite."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from rankrt import Reranker
from rankrt.artifact.precisions import Precision
from rankrt.text.pairs import Pair
from rankrt_export.errors import PartialError, VerificationError
from rankrt_export.job import job
from rankrt_export.pipeline import Options, export
from tests.export.conftest import Make, torch, transformers
from tests.export.decoders import make_decoder
from tests.export.test_decoder import few_texts

pytestmark = pytest.mark.export

PAIRS: list[Pair] = [("why does the tide rise?", "the pull of the moon " * n) for n in range(4)]
LARGEST_HALF = 65504


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "sample", few_texts)


def change_weights(folder: Path, end: str, change: Any) -> None:
    """Change the weights whose names end so."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    changed = {name: change(tensor) if name.endswith(end) else tensor for name, tensor in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A decoder in bfloat16 whose residual grows a hundred thousandfold in its first layer and stays there."""
    folder = make_decoder(tmp_path / "checkpoint", "Gemma", dtype="bfloat16")
    change_weights(folder, "layers.0.mlp.down_proj.weight", lambda tensor: tensor * 1e4)
    change_weights(folder, "layers.0.mlp.up_proj.weight", lambda tensor: tensor * 10)
    return folder


def states_of(folder: Path, dtype: Any, row: list[int]) -> tuple[Any, float]:
    """Return transformers' states behind each layer, and its logit of "Yes"."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    yes = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("Yes")
    with torch.inference_mode():
        found = model(torch.tensor([row]), output_hidden_states=True)
    return found.hidden_states, float(found.logits[0, -1, yes])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "w8", "int8", "int4"])
def test_activations_beyond_half_precision_are_scored_right(large: Path, tmp_path: Path, precision: Precision):
    options = Options(precisions=[precision], max_difference=9.0, min_tau=-1.0)
    artifact = export(str(large), tmp_path / "artifact", options)
    with Reranker.load(artifact.folder, precision=precision) as reranker:
        scores, rows = reranker.score(PAIRS), reranker.encode(PAIRS)
    found = [states_of(large, torch.float32, rows.row(i).tolist()) for i in range(len(PAIRS))]
    assert max(float(states.abs().max()) for states in found[-1][0]) > 3 * LARGEST_HALF
    assert not torch.isfinite(states_of(large, torch.float16, rows.row(3).tolist())[0][-1]).all()
    # fp16 and below round the weights of a random network, which amplifies that.
    tolerance = {"fp32": 1e-4, "fp16": 0.01, "w8": 0.1, "int8": 0.5, "int4": 2.0}[precision]
    np.testing.assert_allclose(scores, [logit for _, logit in found], atol=tolerance, rtol=0)


@pytest.mark.parametrize("end", ["layers.1.mlp.up_proj.weight", "embed_tokens.weight"])
def test_weights_beyond_half_precision_are_left_out_in_it_alone(tmp_path: Path, end: str):
    folder = make_decoder(tmp_path / "checkpoint", "Gemma")
    change_weights(folder, end, lambda tensor: tensor * 1e6)
    reason = rf"{end} has a value of .*, and half precision ends at 65504"
    message = rf"{reason}: .* was written with (cpu-fp32-kernels, )?cpu-fp32 only"
    with pytest.raises(PartialError, match=message) as raised:
        export(str(folder), tmp_path / "artifact", Options(precisions=["fp32", "fp16"], is_verified=False))
    with Reranker.load(raised.value.artifact.folder, precision="fp32") as reranker:
        assert np.isfinite(reranker.score(PAIRS)).all()


def test_an_encoder_s_weights_are_refused_too(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint()
    change_weights(folder, "word_embeddings.weight", lambda tensor: tensor * 1e7)
    with pytest.raises(VerificationError, match=r"word_embeddings\.weight has a value of .*nothing was written"):
        export(str(folder), tmp_path / "artifact", Options(precisions=["fp16"], is_verified=False))
