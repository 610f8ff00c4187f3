"""Checkpoints as people have them: loaded as transformers loads them, or refused for the true reason."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankrt import MissingExtra, RankrtError, Reranker
from rankrt.text.pairs import Pair
from rankrt_export.errors import CheckpointError
from rankrt_export.job import job
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import Texts, parse
from tests.export.conftest import Make, change_config, torch, transformers
from tests.export.decoders import make_decoder

pytestmark = pytest.mark.export

PAIRS: list[Pair] = [("who is it?", "me"), ("who is it?", "nobody at all, it is late"), ("why", "so")]
UNVERIFIED = Options(is_verified=False)


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def save(folder: Path, tensors: dict[str, Any], name: str = "model.safetensors") -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / name, metadata={"format": "pt"})


def shard(folder: Path, write: Callable[[dict[str, Any], Path], None], form: str) -> None:
    """Divide the weights into two files and an index."""
    tensors, stem, ending = tensors_of(folder), *form.split(".", 1)
    (folder / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for part in range(2):
        names = sorted(tensors)[part::2]
        file = f"{stem}-0000{part + 1}-of-00002.{ending}"
        write({name: tensors[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / f"{form}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def identity(folder: Path, out: Path) -> str:
    return export(str(folder), out, UNVERIFIED).identity


# What is loaded.


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_shards_are_read_as_transformers_reads_them(make_checkpoint: Make, tmp_path: Path, form: str):
    folder = make_checkpoint()
    if form == "pytorch_model.bin":
        shard(folder, torch.save, form)
    else:
        shard(folder, lambda tensors, path: save(path.parent, tensors, path.name), form)
    found = export(str(folder), tmp_path / "artifact", Options()).manifest.variants[0].verification
    assert found is not None
    assert found.max_difference < 1e-4


@pytest.mark.parametrize("change", [{"num_labels": None}, {"id2label": None, "num_labels": 1}])
def test_a_null_in_config_json_is_a_field_that_is_not_there(
    make_checkpoint: Make, tmp_path: Path, change: dict[str, Any]
):
    folder = make_checkpoint()
    change_config(folder, **change)
    export(str(folder), tmp_path / "artifact", Options())


@pytest.mark.filterwarnings("ignore")  # peft uses what transformers deprecates
def test_an_adapter_with_a_head_has_peft_s_scores(tmp_path: Path):
    peft = pytest.importorskip("peft")
    base = make_decoder(tmp_path / "base", "Qwen2")
    torch.manual_seed(2)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    artifact = export(str(tmp_path / "adapter"), tmp_path / "artifact", Options(is_verified=False))
    with Reranker.load(artifact.folder, precision="fp32", prepare=False) as reranker, torch.inference_mode():
        encoded = reranker.encode(PAIRS)
        rows = [torch.tensor(encoded.row(i)[None].astype(np.int64)) for i in range(encoded.n_rows)]
        expected = [float(adapted(input_ids=row).logits[0, 0]) for row in rows]
        np.testing.assert_allclose(reranker.score(PAIRS), expected, atol=1e-4, rtol=0)
    assert artifact.manifest.architecture == "Qwen2ForSequenceClassification"


def only_sentencepiece(folder: Path) -> None:
    """Replace tokenizer.json by a sentencepiece model of as few pieces as the model has vectors for."""
    import sentencepiece

    texts = ["who is it? it is me, or nobody at all; it is late, and why so?"] * 20
    with (folder / "sentencepiece.bpe.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=60, character_coverage=1.0,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    (folder / "tokenizer.json").unlink()
    described = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def test_a_sentencepiece_model_is_converted(make_checkpoint: Make, tmp_path: Path):
    pytest.importorskip("sentencepiece")
    folder = make_checkpoint()
    only_sentencepiece(folder)
    found = export(str(folder), tmp_path / "artifact", Options()).manifest.variants[0].verification
    assert found is not None  # the ids are compared before the logits
    assert found.max_difference < 1e-4


def test_what_converts_a_sentencepiece_model_is_named_if_it_is_missing(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = make_checkpoint()
    (folder / "tokenizer.json").rename(folder / "sentencepiece.bpe.model")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    message = r"converted with sentencepiece\. It is not installed; .*pip install 'rankrt\[export\]'"
    with pytest.raises(MissingExtra, match=message):
        export(str(folder), tmp_path / "artifact", UNVERIFIED)


# What is refused.


def index(folder: Path, **content: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def absent_from_its_shard(folder: Path) -> None:
    index(
        folder, weight_map={**dict.fromkeys(tensors_of(folder), "model.safetensors"), "x.weight": "model.safetensors"}
    )


def missing_pickled_shard(folder: Path) -> None:
    shard(folder, torch.save, "pytorch_model.bin")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = tensors_of(folder)
        save(folder, tensors | {name: change(tensors[name])})

    return damage


def not_a_number(tensor: Any) -> Any:
    tensor[1, 2:5] = float("nan")
    tensor[3, 0] = float("inf")
    return tensor


def nested_pickle(folder: Path) -> None:
    torch.save({"model": tensors_of(folder)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def tokens_of_another_model(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["beyond"] = 5000
    path.write_text(json.dumps(content))


QUERY = "roberta.encoder.layer.0.attention.self.query.weight"
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an index of nothing": (lambda folder: index(folder), "has no weight_map"),
    "an index that is no JSON": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
        r"index\.json is not JSON",
    ),
    "an index that leaves the folder": (
        lambda folder: index(folder, weight_map={"x": "../model.safetensors"}),
        "which is not a file beside it",
    ),
    "a tensor that is not in its shard": (absent_from_its_shard, r"has no tensor x\.weight, which model\.safetensors"),
    "a shard that is missing": (missing_pickled_shard, r"00002-of-00002\.bin is missing: the index names it"),
    "a pickle of something else": (nested_pickle, "does not hold tensors by name"),
    "integers": (
        changed(QUERY, lambda tensor: tensor.to(torch.int8)),
        "stores .*query.weight as I8.*quantized already",
    ),
    "NaN and infinity": (changed(QUERY, not_a_number), r"query.weight has NaN or infinity \(4 of 1024 values"),
    "two rows in the head": (
        changed("classifier.out_proj.weight", lambda tensor: torch.cat([tensor, tensor])),
        r"has 2 rows in classifier\.out_proj\.weight: it is a classifier",
    ),
    "a quantized model": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "awq"}),
        r"is quantized already \(config\.json: quantization_config, awq\)",
    ),
    "code of its own": (
        lambda folder: change_config(folder, auto_map={"AutoModelForSequenceClassification": "modeling.Mine"}),
        r"whose code is in its repository \(config\.json: auto_map\)\. rankrt never runs code",
    ),
    "fewer layers than its weights": (
        lambda folder: change_config(folder, num_hidden_layers=2),
        "has weights of 3 layers, and config.json says num_hidden_layers = 2",
    ),
    "a class of another type": (
        lambda folder: change_config(folder, model_type="bert"),
        "says model_type = 'bert', not 'xlm-roberta': they do not belong together",
    ),
    "a type that nobody knows": (
        lambda folder: change_config(folder, model_type="foo", architectures=["FooForSequenceClassification"]),
        "transformers cannot load .*foo",
    ),
    "a field of another type": (
        lambda folder: change_config(folder, hidden_size="32"),
        r"config\.json cannot be used: Expected `int`, got `str` - at `\$\.hidden_size`",
    ),
    "a field that is missing": (
        lambda folder: change_config(folder, num_attention_heads=None),
        r"config\.json has no num_attention_heads, which this model needs",
    ),
    "a config that is not UTF-8": (
        lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xff"}'),
        r"config\.json is not JSON: 'utf-8' codec",
    ),
    "a tokenizer of another model": (tokens_of_another_model, "has tokens up to number 5000, and the model has 400"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_that_cannot_be_exported_says_the_true_reason(make_checkpoint: Make, tmp_path: Path, kind: str):
    damage, message = REFUSED[kind]
    folder = make_checkpoint()
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        export(str(folder), tmp_path / "artifact", UNVERIFIED)
    assert not (tmp_path / "artifact").exists()


# The classes of the README's rows of refused models, which config.json names before anything else is read.
REFUSED_CLASSES = {
    "JinaBertForSequenceClassification": ("own", "JinaBERT is not written here: only that code says by which slopes"),
    "JinaForRanking": ("own", "It ranks a list of passages in one row, which is not implemented"),
    "JinaVLForRanking": ("own", "It reads images, which is not implemented"),
    "LlamaBidirectionalForSequenceClassification": ("own", "Attention in both directions is not implemented for Llama"),
    "LlamaNemotronVLForSequenceClassification": ("own", "It reads images, which is not implemented"),
    "MineForSequenceClassification": ("own", "It can be exported only if its class is one of transformers' own"),
    "Qwen3_5ForConditionalGeneration": ("transformers'", "not implemented; of models that generate text these are"),
    "Qwen3VLForConditionalGeneration": ("transformers'", "not implemented; of models that generate text these are"),
    "T5ForConditionalGeneration": ("transformers'", "not implemented; of models that generate text these are"),
    "T5Gemma2ForConditionalGeneration": ("transformers'", "not implemented; of models that generate text these are"),
}


@pytest.mark.parametrize("architecture", REFUSED_CLASSES)
def test_a_class_that_is_not_implemented_is_refused_with_the_reason(tmp_path: Path, architecture: str):
    code, message = REFUSED_CLASSES[architecture]
    config: dict[str, Any] = {"architectures": [architecture], "model_type": architecture.lower()}
    if code == "own":
        config["auto_map"] = {"AutoModelForSequenceClassification": f"modeling.{architecture}"}
        message = rf"whose code is in its repository \(config\.json: auto_map\)\. rankrt never runs code .*{message}"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"is a {architecture}.*{message}"):
        export(str(tmp_path), tmp_path / "artifact", UNVERIFIED)


def test_an_artifact_is_not_exported_again(make_checkpoint: Make, tmp_path: Path):
    export(str(make_checkpoint()), tmp_path / "artifact", UNVERIFIED)
    with pytest.raises(CheckpointError, match=r"is an artifact already: it has a rankrt\.json"):
        export(str(tmp_path / "artifact"), tmp_path / "again", UNVERIFIED)


def test_weights_that_are_not_numbers_are_named_for_traced_models_too(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint("AlbertConfig")
    changed("classifier.weight", lambda tensor: tensor * float("nan"))(folder)
    with pytest.raises(CheckpointError, match=r"classifier.weight has 32 values of 32 that are NaN or infinity"):
        export(str(folder), tmp_path / "artifact", UNVERIFIED)


# Damage that nobody thought of.

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5))
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=5), SCALARS, max_size=3))
FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")


def few_texts() -> Texts:
    return parse(b'{"query": "why?", "pos": ["so", "so it is"], "neg": ["no", "maybe, who knows"]}', "few")


@st.composite
def damages(draw: Any) -> tuple[str, str, Any]:
    """Draw a file, and what happens to it: a field is changed or deleted, or its bytes are cut or overwritten."""
    file = draw(st.sampled_from(FILES))
    kind = draw(st.sampled_from(["change", "delete", "cut", "overwrite"]))
    if kind == "change":
        return file, kind, (draw(st.integers(0, 10**6)), draw(VALUES))
    return file, kind, draw(st.integers(0, 10**6))


def damage(folder: Path, file: str, kind: str, what: Any) -> None:
    path = folder / file
    content = path.read_bytes()
    if kind in ("change", "delete"):
        place, value = what if kind == "change" else (what, None)
        fields = json.loads(content)
        inner = fields["model"] if file == "tokenizer.json" and place % 2 else fields
        name = sorted(inner)[place // 2 % len(inner)]
        if kind == "change":
            inner[name] = value
        else:
            del inner[name]
        path.write_text(json.dumps(fields))
    elif kind == "cut":
        path.write_bytes(content[: what % len(content)])
    else:
        place = what % len(content)
        path.write_bytes(content[:place] + b"9" + content[place + 1 :])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return an encoder and a decoder."""
    folder = tmp_path_factory.mktemp("whole")
    return {"decoder": make_decoder(folder / "decoder", "Qwen2")}


@pytest.mark.filterwarnings("ignore")  # transformers warns of much that is in a damaged file
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=damages(), family=st.sampled_from(["encoder", "decoder"]))
def test_a_damaged_file_is_refused_with_an_explanation_or_scored_as_transformers_scores_it(
    whole: dict[str, Path], make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory, drawn: Any, family: str
):
    if family not in whole:
        whole[family] = make_checkpoint(name="encoder")
    work = tmp_path_factory.mktemp("damaged")
    shutil.copytree(whole[family], work / "checkpoint")
    damage(work / "checkpoint", *drawn)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "sample", few_texts)
            artifact = export(str(work / "checkpoint"), work / "artifact", Options())
    except RankrtError as error:
        assert str(error).strip()
        assert not (work / "artifact").exists()
    else:
        assert all(variant.verification for variant in artifact.manifest.variants)
    finally:
        shutil.rmtree(work)
