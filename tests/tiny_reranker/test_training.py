"""The way from texts to weights, on a corpus of a few invented words: it ranks before training, and is reproducible."""

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the export extra: pip install 'rankrt[export]'")

import torch

from tiny_reranker.batches import Batch, Sampling, sample_batches, tokenized, window
from tiny_reranker.construction import N_LAYERS, Pieces, construct
from tiny_reranker.corpus import Pool, Question
from tiny_reranker.training import Schedule, classifier_scores, in_groups, loss, train
from tiny_reranker.vocabulary import (
    END_ID,
    N_PIECES,
    PAD_ID,
    START_ID,
    count_pieces,
    learn_vocabulary,
    rarities,
)
from tiny_reranker.widening import widen

pytestmark = pytest.mark.export
SAMPLING = Sampling(n_groups=4, passage_tokens=(32,))


def invented_words(n: int) -> list[str]:
    random = np.random.RandomState(0)

    def syllable() -> str:
        return str(random.choice(list("bdfgklmnprst")) + random.choice(list("aeiou")))

    return [syllable() + syllable() + syllable() for _ in range(n)]


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Sixty passages of twelve words out of 300; a question has four words of its passage, in another order."""
    random, words = np.random.RandomState(1), invented_words(300)
    passages = {str(i): " ".join(random.choice(words, 12, replace=False)) for i in range(60)}
    questions = [
        Question(
            text=" ".join(random.permutation(text.split())[:4]),
            candidates=(key, *(str((int(key) + step) % 60) for step in (7, 19, 31))),
            relevant=frozenset({key}),
        )
        for key, text in passages.items()
    ]
    return Pool(data_set="jaquad", language="xx", passages=passages, questions=tuple(questions))


class Prepared:
    """A vocabulary and batches over the pool; every call of `batches` starts the same sequence again."""

    def __init__(self, pool: Pool) -> None:
        texts = [*pool.passages.values(), *(question.text for question in pool.questions)]
        self.tokenizer = learn_vocabulary(texts, n_pieces=400)
        self.counts = count_pieces(self.tokenizer, pool.passages.values())
        self._pools = [tokenized(pool, self.tokenizer, SAMPLING)]

    def batches(self, seed: int = 0) -> Iterator[Batch]:
        return sample_batches(self._pools, SAMPLING, rarities(self.counts), seed=seed)

    def construct(self) -> Any:
        return construct(Pieces.of(self.tokenizer, self.counts), next(self.batches()), seed=0)


@pytest.fixture(scope="module")
def prepared(pool: Pool) -> Prepared:
    return Prepared(pool)


def first_share(model: Any, batches: Iterator[Batch], n_batches: int = 10) -> float:
    """In how many groups the relevant passage has the highest score."""
    with torch.inference_mode():
        scores = [in_groups(classifier_scores(model, batch), batch.n_groups) for batch in islice(batches, n_batches)]
    return float((torch.cat(scores).argmax(1) == 0).float().mean())


def test_special_pieces_have_xlm_r_s_ids_and_pairs_its_template(prepared: Prepared):
    first, second = "bada", "kemi"
    ids = prepared.tokenizer.encode(first, second).ids
    assert (ids[0], ids[-1], PAD_ID) == (START_ID, END_ID, 1)
    assert [a == b == END_ID for a, b in pairwise(ids)].count(True) == 1


def test_case_width_and_punctuation_do_not_change_a_word_s_pieces(prepared: Prepared):
    def pieces(text: str) -> list[int]:
        ids: list[int] = prepared.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    (word,) = invented_words(1)
    assert pieces(word.upper()) == pieces(word)
    assert pieces(word + ",")[: len(pieces(word))] == pieces(word)


def test_a_group_s_first_row_is_the_relevant_one(prepared: Prepared):
    for batch in islice(prepared.batches(), 5):
        assert batch.ids.shape[0] == batch.n_groups * (1 + SAMPLING.n_negatives)
        assert torch.equal(batch.mask, (batch.ids != PAD_ID).long())
        assert bool((batch.ids[:, 0] == START_ID).all())


def test_the_same_seed_gives_the_same_batches_and_another_one_others(prepared: Prepared):
    first, again, other = (next(prepared.batches(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.ids, again.ids)
    assert first.ids.shape != other.ids.shape or not torch.equal(first.ids, other.ids)


def test_a_long_passage_is_cut_around_the_question_s_rarest_pieces():
    passage, question = np.arange(100), np.array([70, 71, 5])
    rarity = np.ones(100)
    assert window(question, passage, 10, rarity)[0] in range(62, 71)
    rarity[5] = 3.0
    assert window(question, passage, 10, rarity)[0] in range(6)
    assert window(question, passage[:8], 10, rarity).tolist() == list(range(8))


def test_constructed_weights_rank_before_any_training(prepared: Prepared):
    # Chance is a quarter. Invented words share no n-grams by design, so matching them is all there is to it.
    assert first_share(prepared.construct(), prepared.batches(seed=1)) > 0.8


def test_a_few_steps_lower_the_loss_and_the_same_steps_give_the_same_weights(prepared: Prepared):
    models = [prepared.construct() for _ in range(2)]
    before = _mean_loss(models[0], prepared)
    for model in models:
        train(model, prepared.batches(), Schedule(n_steps=30))
    assert _mean_loss(models[0], prepared) < before
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_a_widened_model_computes_the_same_until_noise_is_added(prepared: Prepared, monkeypatch: pytest.MonkeyPatch):
    batch, model = next(prepared.batches()), prepared.construct()
    noisy = widen(model, n_copies=3, n_layers=6)
    monkeypatch.setattr("tiny_reranker.widening._NOISE", 0.0)
    exact = widen(model, n_copies=3, n_layers=6)
    assert (exact.config.hidden_size, exact.config.num_hidden_layers) == (384, 6)
    with torch.inference_mode():
        expected, same, near = (classifier_scores(m, batch) for m in (model, exact, noisy))
    torch.testing.assert_close(same, expected, atol=1e-3, rtol=1e-3)
    assert 0 < float((near - expected).abs().median()) < 1


def test_the_checkpoint_has_the_size_of_the_documentation(prepared: Prepared):
    n_parameters = sum(weight.numel() for weight in prepared.construct().parameters())
    n_with_all_pieces = n_parameters + (N_PIECES - prepared.tokenizer.get_vocab_size()) * 128
    assert N_LAYERS == 3
    assert 2 * n_with_all_pieces < 8e6  # bytes, in float16


def _mean_loss(model: Any, prepared: Prepared) -> float:
    with torch.inference_mode():
        losses = [
            loss(in_groups(classifier_scores(model, batch), batch.n_groups), 0.25)
            for batch in islice(prepared.batches(seed=9), 10)
        ]
    return float(torch.stack(losses).mean())
