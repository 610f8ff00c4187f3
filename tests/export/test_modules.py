"""A model whose head is a chain of sentence-transformers' modules, as Ettin's rerankers are."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import Reranker
from rankrt.artifact.source import Hub
from rankrt.text.pairs import Pair
from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.checkpoint.checkpoint import open_checkpoint
from rankrt_export.checkpoint.head import Dense, Norm
from rankrt_export.errors import CheckpointError
from rankrt_export.pipeline import Options, export
from rankrt_export.reference.pytorch import load_model, scores, tokenized
from tests.export.conftest import SHAPE, spread, torch, transformers, write_tokenizer

pytestmark = pytest.mark.export

PAIRS: list[Pair] = [("who is it?", "me"), ("who is it?", "nobody at all, it is late"), ("why", "so")]
SMALL: dict[str, Any] = SHAPE | {"cls_token_id": 0, "sep_token_id": 2, "type_vocab_size": 2}


def ettin(
    folder: Path,
    config: str = "ModernBertConfig",
    pooling: str = "cls",
    add_tokenizer: Callable[[Path], None] | None = None,
    **changes: Any,
) -> Any:
    """Save a model with Ettin's chain: Pooling, Dense with GELU, LayerNorm, and a Dense that gives the score."""
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6.0")
    from sentence_transformers.base.modules import Dense as DenseModule
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(getattr(transformers, config)(**SMALL | changes)).eval()
    spread(model)
    model.save_pretrained(folder / "backbone")
    (add_tokenizer or partial(write_tokenizer, is_bert=False))(folder / "backbone")
    n = int(SMALL["hidden_size"])
    modules = [
        Transformer(str(folder / "backbone")),
        Pooling(n, pooling_mode=pooling),
        DenseModule(n, n, activation_function=torch.nn.GELU()),
        LayerNorm(n),
        DenseModule(n, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    encoder = sentence_transformers.CrossEncoder(modules=modules)
    with torch.no_grad():
        for module in modules[2:]:
            spread(module)
    encoder.save_pretrained(str(folder / "saved"))
    return encoder


def change(folder: Path, name: str, **content: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_modules_are_read_as_a_head_whose_scores_are_sentence_transformers(tmp_path: Path, pooling: str):
    encoder = ettin(tmp_path, pooling=pooling)
    checkpoint = open_checkpoint(str(tmp_path / "saved"), Hub())
    head = checkpoint.saved.head
    assert head is not None
    assert head.pooling == pooling
    assert [type(layer) for layer in head.layers] == [Dense, Norm, Dense]
    rows = tokenized(checkpoint, PAIRS, 512)
    found = scores(load_model(checkpoint), rows, lambda n_done: None)
    expected = encoder.predict(PAIRS, activation_fn=torch.nn.Identity())
    # fp32: padding and the order of summation differ.
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.01


@pytest.mark.skipif("ModernBertModel" not in ARCHITECTURES, reason="needs the written graph of ModernBERT")
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_artifact_of_it_has_sentence_transformers_scores(tmp_path: Path, pooling: str):
    encoder = ettin(tmp_path, pooling=pooling)
    artifact = export(str(tmp_path / "saved"), tmp_path / "artifact", Options(is_verified=False))
    with Reranker.load(artifact.folder, precision="fp32", prepare=False) as reranker:
        expected = encoder.predict(PAIRS, activation_fn=torch.nn.Identity())
        # fp32: padding and the order of summation differ.
        np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=1e-4, rtol=0)


def test_a_head_after_a_model_that_is_not_written_is_refused(tmp_path: Path):
    ettin(tmp_path, config="BertConfig")
    with pytest.raises(
        CheckpointError, match=r"saved is a BertModel whose score is computed by .*modules Pooling, Dense"
    ):
        export(str(tmp_path / "saved"), tmp_path / "artifact", Options())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "has pooling_mode = 'max'; only cls and mean"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt = false"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.Softplus"},
            "activation_function = 'torch.nn.Softplus'",
        ),
        ("2_Dense/config.json", {"activation_function": "mine.Gelu"}, "activation_function = 'mine.Gelu'"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual, which is not implemented"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task = 'fill-mask'"),
    ],
)
def test_what_a_module_does_besides_is_refused_with_the_file_and_the_field(
    tmp_path: Path, name: str, content: dict[str, Any], message: str
):
    ettin(tmp_path)
    change(tmp_path / "saved", name, **content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tmp_path / "saved"), Hub())


def test_modules_that_do_not_fit_or_are_missing_are_named(tmp_path: Path):
    ettin(tmp_path)
    path = tmp_path / "saved" / "modules.json"
    modules = json.loads(path.read_text())
    path.write_text(json.dumps([*modules[:2], modules[4], modules[4]]))
    with pytest.raises(CheckpointError, match="4_Dense takes 32 features, and the module before it gives 1"):
        open_checkpoint(str(tmp_path / "saved"), Hub())
    path.write_text(json.dumps(modules[:3]))
    with pytest.raises(CheckpointError, match="2_Dense gives 32 scores: it is a classifier"):
        open_checkpoint(str(tmp_path / "saved"), Hub())
    path.write_text(json.dumps(modules))
    (tmp_path / "saved" / "3_LayerNorm" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"3_LayerNorm/model\.safetensors is missing"):
        open_checkpoint(str(tmp_path / "saved"), Hub())
