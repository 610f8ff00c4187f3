"""What may be trained on and what may not: an article serves one purpose, in every language and every list."""

import json
from pathlib import Path

import pytest

from tiny_reranker.corpus import asked, is_for_training, part_of, read_pool, restrict


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten articles of five paragraphs, one question about the first paragraph of each."""
    folder = tmp_path / "xquad"
    folder.mkdir()
    documents = [{"id": str(i), "text": f"paragraph {i}"} for i in range(50)]
    questions = [
        {"query": f"about article {i}", "cand": [str(5 * i), "0", "1", "7"], "label": [1, 0, 0, 0]}
        for i in range(1, 10)
    ]
    for name, lines in (("docs_en", documents), ("candidates_en_top20", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_an_article_s_five_paragraphs_serve_the_same():
    assert [part_of(str(i)) for i in range(5)] == ["held_out"] * 5
    assert [part_of(str(i)) for i in range(15, 20)] == ["dev"] * 5
    assert [part_of(str(i)) for i in range(25, 30)] == ["held_out"] * 5
    assert part_of("239") == "train"


def test_a_fifth_of_the_articles_is_held_out():
    parts = [part_of(str(5 * article)) for article in range(50)]
    assert (parts.count("held_out"), parts.count("dev")) == (10, 5)


def test_nothing_of_other_parts_is_trained_on_not_even_as_a_wrong_candidate(data: Path):
    pool = restrict(read_pool(data, "xquad", "en"), is_for_training)
    assert {part_of(passage) for passage in pool.passages} == {"train"}
    named = {c for question in pool.questions for c in (*question.candidates, *question.relevant)}
    assert {part_of(passage) for passage in named} == {"train"}


def test_held_out_questions_keep_the_candidates_that_bm25_found(data: Path):
    pool = asked(read_pool(data, "xquad", "en"), lambda passage: part_of(passage) == "held_out")
    (question,) = pool.questions
    assert question.candidates == ("25", "0", "1", "7")
    assert question.labels == [1, 0, 0, 0]
    assert len(pool.passages) == 50


def test_a_data_set_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="docs_en"):
        read_pool(tmp_path, "xquad", "en")
