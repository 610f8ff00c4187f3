"""mteb takes a reranker as it takes any cross-encoder, and its figures are ours."""

from pathlib import Path

import pytest

from rankrt import Reranker
from tests.finetune.evaluation.data import DOCUMENTS, QRELS, QUERIES, evaluated, write_beir, write_run
from tests.support import tiny_artifact

mteb = pytest.importorskip("mteb", reason="needs mteb")
pytestmark = pytest.mark.filterwarnings("default")  # what mteb's own dependencies warn of


def test_a_two_stage_task_of_mteb_gives_the_same_figures(tmp_path: Path):
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

    from rankrt.integrations.mteb import MtebReranker

    # mteb puts the greater id first where scores are equal; here the candidates are in that order already.
    candidates = {query: sorted(DOCUMENTS, reverse=True) for query in QUERIES}

    class Task(AbsTaskRetrieval):
        metadata = mteb.get_task("SciFact").metadata.model_copy(update={"name": "Tiny", "type": "Reranking"})

        def load_data(self, num_proc: int | None = None, **unused: object) -> None:
            split = RetrievalSplitData(
                queries=Dataset.from_list([{"id": name, "text": text} for name, text in QUERIES.items()]),
                corpus=Dataset.from_list([{"id": n, "title": "", "text": text} for n, text in DOCUMENTS.items()]),
                relevant_docs=QRELS,
                top_ranked=candidates,
            )
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    artifact = tiny_artifact(tmp_path / "tiny")
    with Reranker.load(artifact.folder) as reranker:
        found = mteb.evaluate(MtebReranker(reranker), Task(), cache=None, co2_tracker=False)
    (scores,) = found.task_results[0].scores["test"]
    run = write_run(tmp_path / "all.trec", candidates)
    ours = evaluated(artifact, write_beir(tmp_path / "beir"), run=run, metrics=["nDCG@10", "MAP@10", "R@3"])
    assert [scores["ndcg_at_10"], scores["map_at_10"], scores["recall_at_3"]] == pytest.approx(
        ours.rows[0].means,
        abs=1e-5,  # mteb rounds to five digits
    )
