"""Gemma 2 and FlagEmbedding's lightweight reranker: bounds, windows, heads by place, passages that are compressed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankrt import InputError, Reranker
from rankrt.artifact.precisions import Precision
from rankrt.backends.cpu_decoder import Batch, Piece
from rankrt.cli.main import main
from rankrt.compat import FlagAutoReranker, FlagLLMReranker, LightWeightFlagLLMReranker
from rankrt.loading.open import open_model, rules_for
from rankrt.options import LoadOptions
from rankrt.text.pairs import Pair
from rankrt_export.errors import CheckpointError, OptionsError
from rankrt_export.job import job
from rankrt_export.pipeline import Options, export
from rankrt_export.text.texts import Texts, parse
from tests.export.conftest import change_config, torch
from tests.export.decoders import make_decoder, make_lightweight
from tests.export.flagembedding import lightweight, rows_given_to

pytestmark = [pytest.mark.export, pytest.mark.filterwarnings("ignore")]

PAIRS: list[Pair] = [
    *[("why does the tide rise?", f"{text} of the moon " * n) for n, text in enumerate(["", "pull", "light", "age"])],
    ("who?", "me"),
    ("who?", "you"),
    ("warum?", "żółw und Mond. " * 9),
    ("alone", "with one passage " * 20),
]
# How FlagEmbedding is asked, and how the same is exported; the last compression is after the last cutoff.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the last layer": ({}, {}),
    "one cutoff": ({"cutoff_layers": [5]}, {"cutoff_layers": [5]}),
    "compressed at an exit": (
        {"cutoff_layers": [3, 5], "compress_layers": [3], "compress_ratio": 2},
        {"cutoff_layers": [5, 3], "compress_layers": [3], "compress_ratio": 2},
    ),
    "compressed twice before the first head": (
        {"cutoff_layers": [4], "compress_layers": [1, 2, 5], "compress_ratio": 4},
        {"cutoff_layers": [4], "compress_layers": [1, 2, 5], "compress_ratio": 4},
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _few_texts() -> Iterator[None]:
    """A row is a byte a token here: the sample's long ones would take minutes."""

    def few() -> Texts:
        return parse(b'{"query": "why?", "pos": ["so", "so it is"], "neg": ["no", "maybe, who knows"]}', "few")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "sample", few)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lightweight(tmp_path_factory.mktemp("lightweight") / "bge-reranker-v2.5-gemma2-lightweight")


@pytest.fixture(scope="module")
def compressed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that compresses at an exit, and after a layer without one."""
    options = Options(cutoff_layers=[3, 5], compress_layers=[2, 3], compress_ratio=2)
    return export(str(checkpoint), tmp_path_factory.mktemp("compressed") / "artifact", options).folder


@pytest.mark.parametrize("way", WAYS)
def test_ids_and_scores_are_flagembedding_s(checkpoint: Path, tmp_path: Path, way: str):
    asked, exported = WAYS[way]
    theirs = lightweight(checkpoint, **asked)
    rows = rows_given_to(theirs)
    # Rows of different lengths run together there: a row's compression does not depend on its company.
    expected = theirs.compute_score([list(pair) for pair in PAIRS], max_length=200)
    alone = [theirs.compute_score([list(pair)], max_length=200) for pair in PAIRS]
    artifact = export(str(checkpoint), tmp_path / "artifact", Options(**exported)).folder
    ours = LightWeightFlagLLMReranker(str(artifact), **asked)
    # fp32: the order of summation differs, and in theirs the padding.
    np.testing.assert_allclose(ours.compute_score(PAIRS, max_length=200), expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(np.squeeze(alone), np.transpose(expected), atol=1e-4, rtol=0)
    with Reranker.load(artifact, max_length=200) as reranker:
        encoded = reranker.encode(PAIRS)
        assert {tuple(encoded.row(i).tolist()) for i in range(encoded.n_rows)} == rows
    assert np.std(expected) > 0.1


def test_another_prompt_moves_where_a_passage_ends_as_in_flagembedding(checkpoint: Path, compressed: Path):
    options: dict[str, Any] = {"prompt": "Predict whether passages A and B have the same meaning."}
    way = {"cutoff_layers": [3, 5], "compress_layers": [2, 3], "compress_ratio": 2}
    expected = lightweight(checkpoint, **way, **options).compute_score([list(pair) for pair in PAIRS])
    ours = LightWeightFlagLLMReranker(str(compressed), cutoff_layers=[3, 5], **options)
    np.testing.assert_allclose(ours.compute_score(PAIRS), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"attn_logit_softcapping": None}, {"sliding_window": 4096}])
def test_the_bounds_and_the_windows_of_gemma_2_change_scores(tmp_path: Path, changes: dict[str, Any]):
    """Transformers computes the reference that `export` compares with, here as it is and without one of them."""
    artifact = export(str(make_decoder(tmp_path / "checkpoint", "Gemma2")), tmp_path / "artifact", Options())
    other = tmp_path / "other"
    make_decoder(other, "Gemma2", **changes)
    found = export(str(other), tmp_path / "other artifact", Options())
    assert found.manifest.variants[0].verification.max_difference < 1e-4  # type: ignore[union-attr]
    with Reranker.load(artifact.folder) as reranker, Reranker.load(found.folder) as changed:
        difference = np.abs(reranker.score(PAIRS) - changed.score(PAIRS)).max()
    assert (difference == 0) if not changes else (difference > 1e-3)


def test_bounded_logits_are_subtracted_after_their_bounds(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    folder = make_decoder(tmp_path / "checkpoint", "Gemma2")
    (folder / "chat_template.jinja").unlink()
    artifact = export(str(folder), tmp_path / "artifact", Options(prompt="qwen3-reranker"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    with Reranker.load(artifact.folder) as reranker, torch.inference_mode():
        encoded = reranker.encode(PAIRS)
        rows = [torch.tensor(encoded.row(i)[None].astype(np.int64)) for i in range(encoded.n_rows)]
        logits = np.array([model(row).logits[0, -1].numpy() for row in rows])
        # fp32: only the order of summation differs.
        np.testing.assert_allclose(
            reranker.score(PAIRS), logits[:, words["yes"]] - logits[:, words["no"]], atol=1e-4, rtol=0
        )


def test_a_compressed_score_is_bitwise_the_same_in_any_company_at_any_depth_prefix_shared_or_not(compressed: Path):
    model = open_model(compressed, LoadOptions(n_threads=1, prepare=False), shares_prefixes=False)
    with (
        Reranker.load(compressed, n_threads=2) as reranker,
        Reranker(model, rules_for(model.placement.artifact, {})) as unshared,
    ):
        together = reranker.score(PAIRS, cutoff_layers=[3, 5])
        assert unshared.score(PAIRS, cutoff_layers=[3, 5]).tobytes() == together.tobytes()
        for layer, expected in zip([3, 5], together, strict=True):
            cut = reranker.with_cutoff(layer)
            assert cut.score(PAIRS[::-1])[::-1].tobytes() == expected.tobytes()
            assert np.concatenate([cut.score([pair]) for pair in PAIRS]).tobytes() == expected.tobytes()
        many = [f"{i} " * i for i in range(1, 40)]
        full = {hit.index: hit.score for hit in reranker.rank("why?", many)}
        stopped = reranker.rank("why?", many, top_n=5, progressive="exact")
        assert all(hit.score == full[hit.index] for hit in stopped)


@pytest.mark.parametrize("precision", ["w8", "int8"])
def test_integers_compress_alike_in_every_company(checkpoint: Path, tmp_path: Path, precision: Precision):
    """int8 is calibrated on passages that are not compressed, and compared with compressed ones."""
    way: dict[str, Any] = {"cutoff_layers": [5], "compress_layers": [2], "compress_ratio": 4}
    options = Options(precisions=["fp32", precision], max_difference=9.0, min_tau=-1.0, **way)
    artifact = export(str(checkpoint), tmp_path / "artifact", options)
    with Reranker.load(artifact.folder, precision=precision, n_threads=2) as reranker:
        together = reranker.score(PAIRS)
        assert np.concatenate([reranker.score([pair]) for pair in PAIRS]).tobytes() == together.tobytes()
        with Reranker.load(artifact.folder, precision="fp32") as exact:
            assert 0 < np.abs(together - exact.score(PAIRS)).max() < 1


def test_an_artifact_says_that_it_compresses(compressed: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info", str(compressed)]) == 0
    told = capsys.readouterr().out
    assert "every 2 tokens of a passage become one after layer 2, 3" in told
    assert "asked in the style flagembedding-lightweight, as the class CostWiseGemmaForCausalLM says" in told
    with Reranker.load(compressed, instruction_set="any") as reranker:
        assert reranker.variant.graphs == ("cpu-fp32-2.onnx", "cpu-fp32-3.onnx", "cpu-fp32-5.onnx")
        assert [(one.layer, one.ratio, one.graph) for one in reranker.variant.compressions] == [
            (2, 2, "cpu-fp32-2.onnx"),
            (3, 2, None),
        ]


def test_the_means_are_those_of_neighbours_and_the_rest_stays():
    states = np.arange(9, dtype=np.float32)[:, None]
    pieces = [Piece(states=states[:2]), Piece(states=states[2:], start=2, after=0, n_passage=5)]
    shorter = Batch.of(pieces).compressed(2)
    assert shorter.states[:, 0].tolist() == [0, 1, 2.5, 4.5, 6, 7, 8]
    assert shorter.positions.tolist() == list(range(7))
    assert shorter.before.tolist() == [[0, 0], [0, 2]]
    assert shorter.n_passage.tolist() == [0, 3]
    assert shorter.compressed(8).states[:, 0].tolist() == pytest.approx([0, 1, 13 / 3, 7, 8])


def test_the_command_exports_what_flagauto_loads(checkpoint: Path, tmp_path: Path):
    options = ["--cutoff-layers", "5", "--compress-layers", "3", "--compress-ratio", "4"]
    assert main(["export", str(checkpoint), str(tmp_path / "light"), *options]) == 0
    given: dict[str, Any] = {"cutoff_layers": [5], "compress_layers": [3, 6], "compress_ratio": 4}
    reranker = FlagAutoReranker.from_finetuned(str(tmp_path / "light"), use_fp16=True, **given)
    assert isinstance(reranker, LightWeightFlagLLMReranker)
    scores = reranker.compute_score(PAIRS)
    with Reranker.load(tmp_path / "light") as own:
        assert scores == own.score(PAIRS).astype(np.float64).tolist()
    assert reranker.compute_score(PAIRS, compress_layer=[3], compress_ratio=4) == scores


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.compute_score(PAIRS, cutoff_layers=[5]), "was exported with the layers 3, 5. Ask for the first"),
        (lambda r: r.compute_score(PAIRS), "FlagEmbedding reads the first layer that is asked for by the first head"),
        (lambda r: r.compute_score(PAIRS, cutoff_layers=[4]), r"cutoff layer 4: cpu-fp32\S* was exported with 3, 5"),
        (
            lambda r: r.compute_score(PAIRS, cutoff_layers=[3], compress_ratio=1),
            "this artifact compresses 2 tokens to one after layer 2, 2 tokens to one after layer 3, which is fixed",
        ),
        (
            lambda r: r.compute_score(PAIRS, cutoff_layers=[3], compress_layers=[2], compress_ratio=4),
            r"compress_layers=\[2\], compress_ratio=4: this artifact compresses",
        ),
    ],
)
def test_what_was_not_exported_is_refused(compressed: Path, ask: Callable[[Any], Any], message: str):
    reranker = LightWeightFlagLLMReranker(str(compressed), cutoff_layers=[3])
    reranker.cutoff_layers = None
    with pytest.raises(InputError, match=message):
        ask(reranker)


def test_a_leading_part_of_the_layers_may_be_asked_for(compressed: Path):
    reranker = LightWeightFlagLLMReranker(str(compressed), cutoff_layers=[5, 3])
    both = reranker.compute_score(PAIRS)
    # Of the compressions only the one after layer 2 is before this cutoff.
    assert reranker.compute_score(PAIRS, cutoff_layers=3, compress_layers=[2], compress_ratio=2) == both[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"compress_layers": [3]}, OptionsError, "--compress-layers has no effect without --compress-ratio"),
        ({"compress_ratio": 3}, OptionsError, "--compress-ratio 3: the model was trained with 1, 2, 4, 8"),
        ({"compress_layers": [0], "compress_ratio": 2}, CheckpointError, "after layers 1 to 5 of this model"),
        (
            {"cutoff_layers": [4], "compress_layers": [4, 5], "compress_ratio": 2},
            OptionsError,
            "--compress-layers 4, 5 has no effect: the last cutoff layer is 4",
        ),
        ({"cutoff_layers": [1]}, CheckpointError, "cutoff layers 1: this model has heads after layers 2 to 6"),
        (
            {"compress_layers": [3], "compress_ratio": 2, "targets": ["cpu", "tensorrt"]},
            CheckpointError,
            "--compress-ratio 2 is for CPUs only, not for tensorrt",
        ),
        (
            {"cutoff_layers": [5, 3], "targets": ["cuda"]},
            CheckpointError,
            "--cutoff-layers 3 5: for cuda name one layer",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        export(str(checkpoint), tmp_path / "artifact", Options(**options))


def test_other_models_have_nothing_to_compress(tmp_path: Path):
    folder = make_decoder(tmp_path / "checkpoint", "Gemma2")
    with pytest.raises(CheckpointError, match="for models that were trained with them, of the class CostWiseGemma"):
        export(str(folder), tmp_path / "artifact", Options(compress_ratio=2))
    with pytest.raises(CheckpointError, match=r"does not have layer_wise = true, so this model lacks the heads"):
        other = make_lightweight(tmp_path / "base", layer_wise=False)
        export(str(other), tmp_path / "artifact", Options())


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("bge-reranker-v2-gemma", {}, FlagLLMReranker),
        ("mine", {"model_class": "decoder-only-base"}, FlagLLMReranker),
        ("bge-reranker-v2-gemma/checkpoint-7", {}, FlagLLMReranker),
    ],
)
def test_the_class_follows_from_the_name(
    compressed: Path, tmp_path: Path, name: str, options: dict[str, Any], expected: type[Any]
):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make_decoder(tmp_path / name, "Gemma")
    assert type(FlagAutoReranker.from_finetuned(str(tmp_path / name), **options)) is expected


def test_an_unknown_name_or_class_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"FlagEmbedding knows no class for a model of that name. Name one as"):
        FlagAutoReranker.from_finetuned(str(tmp_path / "mine"))
    with pytest.raises(InputError, match=r"model_class='encoder': expected one of encoder-only-base"):
        FlagAutoReranker.from_finetuned(str(tmp_path), model_class="encoder")
    with pytest.raises(TypeError, match=r"use FlagAutoReranker.from_finetuned"):
        FlagAutoReranker()


@pytest.mark.parametrize("change", [{"use_bidirectional_attention": True}, {"hidden_activation": "gelu"}])
def test_a_gemma_2_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any]):
    folder = make_decoder(tmp_path / "checkpoint", "Gemma2")
    change_config(folder, **change)
    with pytest.raises(CheckpointError, match=r"config\.json has .*, which is not implemented for this family"):
        export(str(folder), tmp_path / "artifact", Options())
