"""Haystack's pipelines with a ranker of ours in them."""

import asyncio
from typing import Any

import pytest

from rankrt import InputError
from rankrt.artifact.manifest import Artifact

haystack = pytest.importorskip("haystack", reason="haystack-ai is not installed")
adapters = pytest.importorskip("rankrt.integrations.haystack")
from haystack import Document, Pipeline  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def ranker(artifact: Artifact) -> Any:
    return adapters.RankrtRanker(model=str(artifact.folder), top_k=2)


@pytest.fixture
def documents() -> list[Document]:
    return [Document(content=text, meta={"lang": "en"}) for text in ("two", "three", "zero")]


def found_by(ranker: Any, documents: list[Document], **options: Any) -> list[Any]:
    return [(one.content, one.score) for one in ranker.run(query="one", documents=documents, **options)["documents"]]


def test_the_best_documents_come_first_with_their_scores(ranker: Any, documents: list[Document]):
    ranker.warm_up()
    assert found_by(ranker, documents) == [("three", pytest.approx(0.98201376)), ("two", pytest.approx(0.95257413))]
    assert [document.score for document in documents] == [None] * 3, "the given documents stay as they are"
    assert found_by(ranker, documents, top_k=3, scale_score=False) == [("three", 4.0), ("two", 3.0), ("zero", 1.0)]
    assert found_by(ranker, documents, top_k=3, scale_score=False, score_threshold=3.0) == [
        ("three", 4.0),
        ("two", 3.0),
    ]
    assert found_by(ranker, []) == []


def test_the_same_is_awaited(ranker: Any, documents: list[Document]):
    found = asyncio.run(ranker.run_async(query="one", documents=documents))
    assert found == ranker.run(query="one", documents=documents)


def test_metadata_prefixes_and_suffixes_are_read(artifact: Artifact):
    ranker = adapters.RankrtRanker(
        model=str(artifact.folder),
        query_prefix="one ",
        query_suffix=" one",
        document_prefix="two ",
        document_suffix=" two",
        meta_fields_to_embed=["title", "missing", "nothing"],
        embedding_separator=" ",
        scale_score=False,
        load_options={"max_length": 32},
    )
    documents = [Document(content="three", meta={"title": "four", "nothing": None}), Document(meta={"title": "four"})]
    assert [one.score for one in ranker.run(query="one", documents=documents)["documents"]] == [14.0, 11.0]


def test_a_document_without_content_is_scored_as_empty(ranker: Any):
    assert found_by(ranker, [Document(content=None, id="a"), Document(content="", id="b")], scale_score=False) == [
        (None, 1.0),
        ("", 1.0),
    ]


def test_of_documents_with_one_id_the_one_with_the_best_score_stays(ranker: Any):
    documents = [
        Document(content="two", id="a", score=0.1),
        Document(content="three", id="a", score=0.3),
        Document(content="four", id="a"),
    ]
    assert found_by(ranker, documents, scale_score=False) == [("three", 4.0)]


def test_a_pipeline_runs_it_and_is_saved_with_it(ranker: Any, documents: list[Document]):
    pipeline = Pipeline()
    pipeline.add_component("ranker", ranker)
    asked = {"ranker": {"query": "one", "documents": documents}}
    assert [one.content for one in pipeline.run(asked)["ranker"]["documents"]] == ["three", "two"]
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["rankrt.integrations.haystack"])
    assert again.to_dict() == pipeline.to_dict()
    assert again.run(asked) == pipeline.run(asked)


def test_it_is_made_again_of_its_description(artifact: Artifact):
    options = {
        "model": str(artifact.folder),
        "top_k": 3,
        "query_prefix": "a",
        "query_suffix": "b",
        "document_prefix": "c",
        "document_suffix": "d",
        "meta_fields_to_embed": ["title"],
        "embedding_separator": " ",
        "scale_score": False,
        "score_threshold": 0.5,
        "load_options": {"max_length": 32},
    }
    description = adapters.RankrtRanker(**options).to_dict()
    assert description == {"type": "rankrt.integrations.haystack.RankrtRanker", "init_parameters": options}
    assert adapters.RankrtRanker.from_dict(description).to_dict() == description


def test_closing_releases_the_model_and_warming_up_loads_it_again(ranker: Any, documents: list[Document]):
    ranker.close()
    ranker.warm_up()
    expected = found_by(ranker, documents)
    ranker.close()
    ranker.close()
    assert found_by(ranker, documents) == expected


def test_what_cannot_be_ranked_is_named(ranker: Any, documents: list[Document], artifact: Artifact):
    with pytest.raises(InputError, match="document 3 is str, not a Haystack Document; pass Document"):
        ranker.run(query="one", documents=[*documents, "two"])
    with pytest.raises(InputError, match="the query is empty"):
        ranker.run(query=" ", documents=documents)
    with pytest.raises(ValueError, match="top_k=0, expected a whole number of at least 1"):
        ranker.run(query="one", documents=documents, top_k=0)
    with pytest.raises(ValueError, match="top_k=0"):
        adapters.RankrtRanker(model=str(artifact.folder), top_k=0)
    with pytest.raises(InputError, match="model is NoneType, expected a folder or a hub id, which a pipeline can save"):
        adapters.RankrtRanker(model=None)
