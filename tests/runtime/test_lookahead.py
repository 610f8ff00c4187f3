"""The first tokens that the library would find in a long text, found without most of it."""

import gc
import random
import time
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from rankrt import InputError
from rankrt.text.lookahead import Lookahead
from rankrt.text.tokenizers import LibraryTokenizer

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ALPHABET = [*"aabbccABé水火'!- \n1234", "'ll", "'re", "\u0301", "<s>", "  ", "각"]
RANDOM = random.Random(5)
CORPUS = ["".join(RANDOM.choices(ALPHABET, k=60)) for _ in range(300)]


def trained(model: Any, trainer: Any, normalizer: Any = None, pre_tokenizer: Any = None) -> LibraryTokenizer:
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False)])
    return LibraryTokenizer(tokenizer)


def bpe(**options: Any) -> Any:
    return trainers.BpeTrainer(vocab_size=400, show_progress=False, **options)


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
ALL_BYTES = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
KINDS = {
    "GPT-2": trained(models.BPE(), bpe(**ALL_BYTES), None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "Qwen": trained(
        models.BPE(),
        bpe(**ALL_BYTES),
        normalizers.NFC(),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"), BYTES]),
    ),
    "MiniCPM": trained(
        models.BPE(unk_token="<unk>", fuse_unk=True),
        bpe(special_tokens=["<unk>"], limit_alphabet=8),
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    ),
    "BERT": trained(
        models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=12),
        trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False),
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    ),
    "Unigram": trained(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(),
    ),
}
texts = st.lists(st.sampled_from(ALPHABET), max_size=300).map("".join) | st.text("ab", min_size=100, max_size=300)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> LibraryTokenizer:
    return KINDS[request.param]


@settings(deadline=None, max_examples=300)
@given(kind=st.sampled_from(sorted(KINDS)), text=texts, n_tokens=st.integers(1, 30))
def test_the_first_tokens_are_those_of_the_whole_text(kind: str, text: str, n_tokens: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankrt.text.tokenizers._CHARS_PER_TOKEN", 1)
        patch.setattr("rankrt.text.lookahead._FACTORS", (1, 3, 6))
        (whole,), (head,), (tail,) = (
            KINDS[kind].ids([text]),
            KINDS[kind].heads([text], n_tokens),
            KINDS[kind].tails([text], n_tokens),
        )
    assert head.tolist() == whole[: len(head)].tolist()
    assert tail.tolist() == whole[len(whole) - len(tail) :].tolist()
    assert min(len(head), len(tail)) >= min(n_tokens, len(whole))


def test_a_megabyte_without_a_space_is_read_as_far_as_a_row_needs(tokenizer: LibraryTokenizer):
    text = "".join(RANDOM.choices("abc水火!", k=1_000_000))
    started = time.process_time()
    (ids,) = tokenizer.heads([text], 512)
    assert len(ids) >= 512
    assert time.process_time() - started < 0.4  # all of it takes 1 s and more


def test_a_long_word_is_unknown_to_wordpiece_and_what_follows_is_found():
    text = "a" * 1_000_000 + " b!"
    assert KINDS["BERT"].heads([text], 5)[0].tolist() == KINDS["BERT"].ids([text])[0].tolist()
    with pytest.raises(InputError, match="1048576 characters in a row that the tokenizer cannot divide"):
        KINDS["BERT"].heads([f"{text[:-3]}{text}"], 5)  # the library would take 300 bytes for each


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": normalizers.Replace("ab", "c")},
        {"pre_tokenizer": pre_tokenizers.Split(Regex(r"(?<=a)(?=(aaa)+b)"), "isolated")},
        {"pre_tokenizer": pre_tokenizers.UnicodeScripts()},
        {"model": models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>")},
        {"model": models.BPE({"a": 0}, [], dropout=0.5)},
        {"model": models.WordLevel({"a": 0}, unk_token="a")},
    ],
)
def test_a_tokenizer_with_a_part_that_is_not_known_gets_whole_texts(changes: dict[str, Any]):
    tokenizer = Tokenizer(changes.pop("model", models.BPE({"a": 0}, [])))
    for name, part in changes.items():
        setattr(tokenizer, name, part)
    assert Lookahead.of(tokenizer) is None
    assert LibraryTokenizer(tokenizer).heads(["a" * 100], 3)[0].tolist() == tokenizer.encode("a" * 100).ids


def test_a_tokenizer_leaves_at_once_and_not_with_the_collector():
    """In a circle, the vocabularies of models that a server had replaced stayed for many requests more."""
    lookahead = Lookahead.of(Tokenizer(models.BPE({"a": 0}, [])))
    assert lookahead is not None
    lookahead.first_ids("aaa " * 100, 3)
    reference = weakref.ref(lookahead)
    gc.disable()
    try:
        del lookahead
        assert reference() is None
    finally:
        gc.enable()
