"""BM25 over a corpus that is read as a stream gives what bm25s gives for the same words in one list."""

from random import Random

import bm25s
import numpy as np

from rankrt_finetune.bm25 import words
from rankrt_finetune.evaluation.bm25 import Bm25

VOCABULARY = [f"word{i}" for i in range(40)]


def corpus(n: int) -> dict[str, str]:
    random = Random(0)
    return {f"d{i}": " ".join(random.choices(VOCABULARY, k=random.randint(1, 20))) for i in range(n)}


def test_scores_and_order_are_those_of_bm25s():
    documents = corpus(200)
    reference = bm25s.BM25()
    reference.index([words(text) for text in documents.values()], show_progress=False)
    index = Bm25(documents.items())
    for query in ("word1 word2", "word3", "word4 word4 word9 unknown"):
        known = [word for word in words(query) if word in reference.vocab_dict]
        scores = reference.get_scores(known)
        found = index.search(query, 10)
        np.testing.assert_allclose(found.scores, np.sort(scores)[::-1][:10], rtol=1e-6)  # sums in another order
        assert all(
            np.isclose(scores[int(name[1:])], score) for name, score in zip(found.ids, found.scores, strict=True)
        )


def test_only_documents_that_share_a_word_are_found():
    index = Bm25([("a", "one two"), ("b", "three"), ("c", ""), ("d", "two two")])
    assert index.search("two four", 10).ids == ("d", "a")
    assert index.search("four", 10).ids == index.search("", 10).ids == ()
    assert index.search("two", 10, without="d").ids == ("a",)
    assert index.search("two", 1, without="d").ids == ("a",)


def test_candidates_that_share_nothing_keep_their_order():
    index = Bm25([("a", "one"), ("b", "two"), ("c", "three")])
    assert index.order("three", ["b", "a", "c"]).ids == ("c", "b", "a")
    assert index.order("four", ["b", "a"]).ids == ("b", "a")


def test_a_corpus_without_words_is_searched():
    assert Bm25([("a", "...")]).search("one", 5).ids == ()
