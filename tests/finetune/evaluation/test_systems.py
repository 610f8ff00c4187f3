"""Checkpoints in PyTorch beside their artifacts, and the ways of ranking of a layerwise model."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Margins, write_manifest
from rankrt.options import LoadOptions
from rankrt_finetune.evaluation.artifacts import Wanted
from rankrt_finetune.evaluation.evaluation import evaluate
from rankrt_finetune.evaluation.measures import Measures
from rankrt_finetune.evaluation.rankings import Asked
from rankrt_finetune.evaluation.systems import systems_of
from tests.finetune.evaluation.data import dataset, no_bar, write_beir

pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("sentence_transformers", reason="needs the finetune extra")
pytestmark = pytest.mark.export

from rankrt_export.pipeline import Options, export  # noqa: E402
from tests.export.decoders import make_layerwise  # noqa: E402
from tests.finetune.conftest import ANSWERS, FILLERS, TOPICS, write_bert  # noqa: E402

QUERIES = {f"q{i}": f"about {topic}" for i, topic in enumerate(TOPICS)}
DOCUMENTS = {f"d{i}": " ".join([*FILLERS[i : i + 5], ANSWERS[i % 2], TOPICS[i % 6]]) for i in range(18)}
QRELS = {query: {f"d{i}": 1} for i, query in enumerate(QUERIES)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert") / "checkpoint")


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Path:
    return export(str(checkpoint), checkpoint.parent / "artifact", Options(is_verified=False)).folder


@pytest.fixture(scope="module")
def layerwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layerwise model with margins so wide that no document stops early: measuring real ones takes a minute."""
    folder = tmp_path_factory.mktemp("layerwise")
    options = Options(cutoff_layers=[3, 6], is_verified=False)
    made = export(str(make_layerwise(folder / "minicpm")), folder / "a", options)
    margins = Margins(shares=(1.0,), gaps=(1e6,), rise=1e6)
    measured = tuple(
        msgspec.structs.replace(
            variant, exits=tuple(msgspec.structs.replace(end, margins=margins) for end in variant.exits)
        )
        for variant in made.manifest.variants
    )
    write_manifest(msgspec.structs.replace(made.manifest, variants=measured), made.folder)
    return made.folder


def test_an_artifact_is_compared_with_the_checkpoint_that_it_came_from(
    checkpoint: Path, artifact: Path, tmp_path: Path
):
    source = write_beir(tmp_path / "data", DOCUMENTS, QUERIES, QRELS)
    chosen = systems_of([str(checkpoint), str(artifact)], Wanted(precisions=["fp32"]), LoadOptions(), {})
    with dataset(source) as data:
        found = evaluate(data, chosen, Measures.of(["nDCG@10", "MAP"]), folder=tmp_path / "scores", bar=no_bar)
        again = evaluate(data, chosen, Measures.of(["nDCG@10", "MAP"]), folder=tmp_path / "scores", bar=no_bar)
    assert [row.name for row in found.rows] == ["checkpoint PyTorch", "artifact fp32", "BM25"]
    assert found.rows[1].compared_to == "checkpoint PyTorch", "they have the same weights"
    assert found.rows[1].likeness is not None
    assert 0 <= found.rows[1].likeness.max_drift < 1e-4  # the limit of fp32
    assert found.rows[1].means == again.rows[1].means == pytest.approx(found.rows[0].means, abs=1e-3)


def test_long_documents_are_cut_to_the_model_s_limit(checkpoint: Path):
    """The tiny model has 64 positions, and the default is 512."""
    (system,) = systems_of([str(checkpoint)], Wanted(), LoadOptions(), {})
    long = " ".join(FILLERS * 10)
    with system.open() as rank:
        whole, cut = rank([Asked(query="about bears", documents=[long, " ".join(long.split()[:80])])])[0].scores
    assert whole == pytest.approx(cut, abs=1e-6)  # PyTorch's sums depend on the batch


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path):
    folder = write_bert(tmp_path / "embedder", is_embedder=True)
    with pytest.raises(InputError, match=r"is a checkpoint of BertModel.*a head of random numbers"):
        systems_of([str(folder)], Wanted(), LoadOptions(), {})


def test_rules_of_rankrt_are_not_for_a_checkpoint(checkpoint: Path):
    with pytest.raises(InputError, match=r"long_documents='chunk' is for artifacts, but .* is a checkpoint"):
        systems_of([str(checkpoint)], Wanted(), LoadOptions(), {"max_length": 32, "long_documents": "chunk"})


def test_layers_and_stopping_early_are_rows(layerwise: Path, tmp_path: Path):
    wanted = Wanted(precisions=["fp32"], cutoff_layers=[3], progressive="exact", top_n=2)
    chosen = systems_of([str(layerwise)], wanted, LoadOptions(), {})
    source = write_beir(tmp_path / "data", DOCUMENTS, {"q0": "about bears"}, {"q0": {"d0": 1}})
    with dataset(source) as data, Reranker.load(layerwise, precision="fp32") as reranker:
        found = evaluate(data, chosen, Measures.of(["nDCG@2"]), folder=tmp_path / "scores", bar=no_bar)
        texts = [data.documents.text(name) for name in data.candidates["q0"].ids]
        whole = reranker.score([("about bears", text) for text in texts])
        early = reranker.score([("about bears", text) for text in texts], cutoff_layers=[3])[0]
    assert [row.name for row in found.rows] == ["a fp32", "a fp32, layer 3", "a fp32, progressive, exact", "BM25"]
    scores = [row.rankings["q0"].scores for row in found.rows]
    assert (scores[0].tobytes(), scores[1].tobytes()) == (whole.tobytes(), early.tobytes())
    best = np.argsort(-whole, kind="stable")[:2]
    assert found.rows[2].rankings["q0"].order[:2].tolist() == best.tolist()
    assert scores[2][best].tobytes() == whole[best].tobytes()


def test_a_layer_that_was_not_exported_is_refused(layerwise: Path):
    with pytest.raises(InputError, match=r"cutoff layer 4: .* was exported with 3, 6"):
        systems_of([str(layerwise)], Wanted(precisions=["fp32"], cutoff_layers=[4]), LoadOptions(), {})


def test_a_classifier_of_pairs_is_refused(tmp_path: Path):
    folder = write_bert(tmp_path / "nli", num_labels=3)
    (system,) = systems_of([str(folder)], Wanted(), LoadOptions(), {})
    with pytest.raises(InputError, match="gives 3 scores for a pair; a reranker gives one"), system.open():
        pass
