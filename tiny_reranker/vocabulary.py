"""The vocabulary: a Unigram tokenizer in XLM-RoBERTa's layout, learned from the training texts. Knows no model.

XLM-RoBERTa gives the ids of the special tokens, the template of a pair and `▁` for a space. Unlike it, the normaliser
makes all text lower case, and punctuation is separate from words.
"""

from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from rankrt.arrays import Int64Array
from tiny_reranker.corpus import Pool

Float64Array: TypeAlias = npt.NDArray[np.float64]

START, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
SPECIAL = (START, PAD, END, UNKNOWN)
START_ID, PAD_ID, END_ID, UNKNOWN_ID = range(len(SPECIAL))
SPACE = "▁"

# 24,000 pieces are as many as 8 MB hold. BM25 over the pieces shows how well they work for articles that they were not
# learned from. Its dev nDCG@10 was .945 with 20,000 and .952 with 24,000 (mean of 12 languages).
N_PIECES = 24_000
_LONGEST_PIECE_CHARS = 16
# XQuAD has 12 languages to share the pieces, JaQuAD and CMRC 2018 have two. Used whole, their characters would crowd
# out the words of the others: .937 instead of .952.
_N_XQUAD_TIMES, _N_MONOLINGUAL_PASSAGES, _N_MONOLINGUAL_QUESTIONS = 3, 500, 1000


def learn_vocabulary(texts: Sequence[str], n_pieces: int = N_PIECES) -> Tokenizer:
    """Make a Unigram tokenizer: byte-pair merges find its pieces, and frequencies in the texts give their likelihood.

    The usual way is expectation maximisation over substrings. It keeps the frequent substrings of *these* texts and
    splits unseen words into crumbs. At 20,000 pieces it had .926 instead of .945, and rows 12 % longer.
    """
    merged = _merged_pieces(texts, n_pieces)
    counts = count_pieces(merged, texts)
    scores = np.log((counts + 0.1) / counts.sum())
    scores[: len(SPECIAL)] = 0.0
    pieces = list(zip(piece_names(merged), scores.tolist(), strict=True))
    tokenizer = _with_xlmr_layout(models.Unigram(pieces, unk_id=UNKNOWN_ID))
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def piece_names(tokenizer: Tokenizer) -> list[str]:
    """Return the pieces in the order of their ids."""
    ids = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> Int64Array:
    """Return how often each piece occurs in the texts, (n_pieces,)."""
    counts = np.zeros(tokenizer.get_vocab_size(), np.int64)
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        np.add.at(counts, encoding.ids, 1)
    return counts


def rarities(counts: Int64Array) -> Float64Array:
    """Return the rarity of pieces, (n_pieces,): -log of the frequency, standardised over the text, -2 to 1.6."""
    occurrences = counts + 0.5
    idf = -np.log(occurrences / occurrences.sum())
    mean = np.average(idf, weights=occurrences)
    deviation = np.sqrt(np.average((idf - mean) ** 2, weights=occurrences))
    rarity: Float64Array = 0.8 * np.clip((idf - mean) / deviation, -2.5, 2.0)
    rarity[: len(SPECIAL)] = 0
    return rarity


def vocabulary_texts(pools: Iterable[Pool]) -> Iterator[str]:
    """Yield the texts for learning pieces, in a mix of languages that keeps each from crowding out another."""
    for pool in pools:
        passages, questions = list(pool.passages.values()), [question.text for question in pool.questions]
        if pool.data_set == "xquad":
            yield from (passages + questions) * _N_XQUAD_TIMES
        else:
            yield from Random(0).sample(passages, min(len(passages), _N_MONOLINGUAL_PASSAGES))
            yield from Random(0).sample(questions, min(len(questions), _N_MONOLINGUAL_QUESTIONS))


def _merged_pieces(texts: Iterable[str], n_pieces: int) -> Tokenizer:
    tokenizer = _with_xlmr_layout(models.BPE(unk_token=UNKNOWN))
    trainer = trainers.BpeTrainer(
        vocab_size=n_pieces,
        special_tokens=list(SPECIAL),
        max_token_length=_LONGEST_PIECE_CHARS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _with_xlmr_layout(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # With separate punctuation, a word always has the same pieces. Arabic gained .018 from it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} {END} $B {END}",
        special_tokens=[(START, START_ID), (END, END_ID)],
    )
    return tokenizer
