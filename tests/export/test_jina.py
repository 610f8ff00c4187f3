"""jina-reranker-v2: XLM-RoBERTa under the names of flash-attention's modules, with code that is never run.

`of_equations` computes what that code computes without a GPU, in plain PyTorch, from the names as they are stored.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.arrays import Float32Array
from rankrt.artifact.precisions import Precision
from rankrt.text.pairs import Encoded
from rankrt_export.errors import CheckpointError
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import sample
from tests.export.conftest import change_config, checkpoint_of, torch

pytestmark = pytest.mark.export

STORED = {
    "roberta.embeddings.LayerNorm.": "roberta.emb_ln.",
    ".encoder.layer.": ".encoder.layers.",
    ".attention.output.dense.": ".mixer.out_proj.",
    ".attention.output.LayerNorm.": ".norm1.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
    ".output.LayerNorm.": ".norm2.",
}


def jina_checkpoint(folder: Path, **changes: Any) -> Path:
    """Write a checkpoint under the names, and with the fields, of jina-reranker-v2-base-multilingual."""
    checkpoint_of(folder, "XLMRobertaConfig", **changes)
    tensors = tensors_of(folder)
    for name in [name for name in tensors if ".self.query." in name]:
        parts = [tensors.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        tensors[name.replace(".attention.self.query.", ".mixer.Wqkv.")] = torch.cat(parts)
    for name in list(tensors):
        stored = name
        for theirs, its in STORED.items():
            stored = stored.replace(theirs, its)
        tensors[stored] = tensors.pop(name)
    save(folder, tensors)
    change_config(
        folder,
        model_type=None,
        auto_map={
            "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModel": "modeling_xlm_roberta.XLMRobertaModel",
            "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification",
        },
        num_labels=1,
        position_embedding_type="absolute",
        use_flash_attn=True,
        emb_pooler=None,
    )
    return folder


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def save(folder: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")


def of_equations(folder: Path, encoded: Encoded) -> Float32Array:
    """Score rows one at a time, in float32."""
    from torch.nn import functional

    config, tensors = json.loads((folder / "config.json").read_text()), tensors_of(folder)
    n_features, n_heads, pad = (config[name] for name in ("hidden_size", "num_attention_heads", "pad_token_id"))

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x: Any, name: str) -> Any:
        parts = (tensors[f"{name}.weight"], tensors[f"{name}.bias"])
        return functional.layer_norm(x, (n_features,), *parts, config["layer_norm_eps"])

    def score(ids: Any) -> float:
        tables = (
            tensors[f"roberta.embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        words, positions, types = tables
        x = words[ids] + positions[pad + 1 : pad + 1 + len(ids)] + types[0]
        x = norm(x, "roberta.emb_ln")
        for i in range(config["num_hidden_layers"]):
            layer = f"roberta.encoder.layers.{i}"
            packed = linear(x, f"{layer}.mixer.Wqkv").reshape(len(x), 3, n_heads, -1)  # "(three h d)"
            query, key, value = packed.permute(1, 2, 0, 3)
            shares = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
            attended = (shares @ value).transpose(0, 1).flatten(1)
            x = norm(x + linear(attended, f"{layer}.mixer.out_proj"), f"{layer}.norm1")
            widened = functional.gelu(linear(x, f"{layer}.mlp.fc1"))
            x = norm(x + linear(widened, f"{layer}.mlp.fc2"), f"{layer}.norm2")
        return float(linear(torch.tanh(linear(x[:1], "classifier.dense")), "classifier.out_proj"))

    with torch.inference_mode():
        rows = [torch.tensor(encoded.row(i).astype(np.int64)) for i in range(encoded.n_rows)]
        return np.array([score(row) for row in rows], np.float32)


def test_logits_are_those_of_the_equations(tmp_path: Path):
    folder, pairs = jina_checkpoint(tmp_path / "checkpoint"), sample().pairs
    artifact = export(str(folder), tmp_path / "artifact", Options())
    found = artifact.manifest.variants[0].verification
    assert found is not None
    # fp32: only the order of summation differs.
    assert found.max_difference < 1e-4
    with Reranker.load(artifact.folder, precision="fp32") as reranker:
        expected = of_equations(folder, reranker.encode(pairs))
        scores = reranker.score(pairs)
        np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)
        assert np.concatenate([reranker.score([pair]) for pair in pairs]).tobytes() == scores.tobytes()
    assert expected.std() > 0.1


def test_the_artifact_is_that_of_xlm_roberta(tmp_path: Path):
    """The same bytes under other names give the same files: graphs for GPUs, and fp16, are proven with XLM-RoBERTa."""
    options = Options(precisions=["fp32", "fp16"], targets=["cpu", "cuda", "tensorrt"], is_verified=False)
    xlm_roberta = export(str(checkpoint_of(tmp_path / "a", "XLMRobertaConfig")), tmp_path / "a-out", options)
    jina = export(str(jina_checkpoint(tmp_path / "b")), tmp_path / "b-out", options)
    assert jina.manifest.files == xlm_roberta.manifest.files
    assert jina.manifest.max_length == xlm_roberta.manifest.max_length


def test_weights_as_they_are_published(tmp_path: Path):
    """A pickle of parameters in bfloat16, which ask for gradients."""
    folder = jina_checkpoint(tmp_path / "checkpoint")
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in tensors_of(folder).items()}
    save(folder, {name: tensor.float() for name, tensor in halves.items()})
    whole = export(str(folder), tmp_path / "whole", Options(is_verified=False))
    torch.save({name: torch.nn.Parameter(t) for name, t in halves.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    pickled = export(str(folder), tmp_path / "pickled", Options())
    assert pickled.manifest.files == whole.manifest.files


def test_int8_is_verified(tmp_path: Path):
    precisions: list[Precision] = ["fp32", "int8"]
    options = Options(precisions=precisions, max_difference=1, min_tau=0.7)
    artifact = export(str(jina_checkpoint(tmp_path / "checkpoint")), tmp_path / "artifact", options)
    assert {variant.precision for variant in artifact.manifest.variants} == set(precisions)


def test_code_in_the_checkpoint_is_not_run(tmp_path: Path):
    folder = jina_checkpoint(tmp_path / "checkpoint")
    for name in ("configuration_xlm_roberta", "modeling_xlm_roberta"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w').close()\n")
    export(str(folder), tmp_path / "artifact", Options())
    assert not (tmp_path / "was run").exists()


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: save(folder, {key: t for key, t in tensors_of(folder).items() if key != name})


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda folder: save(folder, tensors_of(folder) | {name: change(tensors_of(folder)[name])})


WQKV = "roberta.encoder.layers.1.mixer.Wqkv.weight"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "rotary positions": (
        lambda folder: change_config(folder, position_embedding_type="rotary"),
        "position_embedding_type = 'rotary'; only 'absolute'",
    ),
    "another activation": (lambda folder: change_config(folder, hidden_act="gelu_new"), "hidden_act = 'gelu_new'"),
    "an embedding model": (
        lambda folder: change_config(folder, architectures=["XLMRobertaModel"]),
        "XLMRobertaModel whose code lies in its repository",
    ),
    "other code": (
        lambda folder: change_config(folder, auto_map={"AutoModel": "modeling.Mine"}, model_type="xlm-roberta"),
        r"whose code lies in its repository \(config\.json: auto_map\)",
    ),
    "two labels": (lambda folder: change_config(folder, num_labels=2), "has 2 labels"),
    "fewer layers than its weights": (lambda folder: change_config(folder, num_hidden_layers=2), "weights of 3 layers"),
    "a tensor that is missing": (without(WQKV), r"has no tensor roberta\.encoder\.layer\.1\.attention\.self\.query"),
    "layers that are not of one size": (changed(WQKV, lambda t: t[:-1]), f"has 95 rows in {WQKV}, which are not 3"),
    "numbers that are none": (changed(WQKV, lambda t: t * float("nan")), f"damaged: {WQKV} has NaN or infinity"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_that_cannot_be_exported_says_why(tmp_path: Path, kind: str):
    folder = jina_checkpoint(tmp_path / "checkpoint")
    damage, message = REFUSED[kind]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        export(str(folder), tmp_path / "artifact", Options(is_verified=False))
