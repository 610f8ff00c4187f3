"""The ways of asking a decoder that rankrt knows: the words around query and passage, and what the answer is.

Each is taken from the code or the model card of the model's authors. Knows no checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rankrt.artifact.manifest import Prompt
from rankrt.text.instructions import Form
from rankrt.text.pairs import Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """A way to ask: a row is prefix, query, separator, passage, suffix; or the passage first, then the query.

    begins    with the tokenizer's token for the beginning of a text, if it has one
    is_joint  its authors tokenize a row as one text; rankrt cuts it where no token crosses. If not, they tokenize
              prefix, query, separator, passage and each part of the suffix apart
    answers   tokens of the vocabulary, as texts or numbers: the score is the first one's logit, less the second one's
              if there are two. None for a model with a head of its own
    """

    prompt: Prompt
    begins: bool = False
    prefix: str = ""
    separator: str = ""
    suffix: tuple[str, ...] = ()
    passage_first: bool = False
    is_joint: bool = True
    answers: tuple[str | int, ...] = ()

    @property
    def query_form(self) -> Form:
        """The words around a query."""
        return self._form(self.prompt.query_instruction, self.prompt.query_format)

    @property
    def passage_form(self) -> Form:
        """The words around a passage."""
        return self._form(self.prompt.passage_instruction, self.prompt.passage_format)

    def text(self, pair: Pair, first: str = "") -> str:
        """Return a row as one text; `first` is the tokenizer's token for the beginning."""
        texts = [self.query_form.around(pair[0]), self.passage_form.around(pair[1])]
        middle = self.separator.join(texts[:: -1 if self.passage_first else 1])
        return first * self.begins + self.prefix + middle + "".join(self.suffix)

    def _form(self, instruction: str, form: str) -> Form:
        return Form(instruction=instruction, format=form, keeps_end=self.prompt.keeps_end, strips=self.prompt.strips)


_QUESTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a"
    " prediction of either 'Yes' or 'No'."
)
_SHORT_QUESTION = "Predict whether passage B contains an answer to query A."
STYLES: Mapping[str, Style] = {
    # FlagEmbedding 1.4.2, inference/reranker/decoder_only/base.py: separator and question follow the passage too.
    "flagembedding": Style(
        prompt=Prompt(
            query_instruction="A: ",
            query_format="{}{}",
            passage_instruction="B: ",
            passage_format="{}{}",
            question=_QUESTION,
            style="flagembedding",
        ),
        begins=True,
        separator="\n",
        suffix=("\n", _QUESTION),
        is_joint=False,
        answers=("Yes",),
    ),
    # FlagEmbedding 1.4.2, inference/reranker/decoder_only/lightweight.py.
    "flagembedding-lightweight": Style(
        prompt=Prompt(
            query_instruction="A: ",
            query_format="{}{}",
            passage_instruction="B: ",
            passage_format="{}{}",
            question=_SHORT_QUESTION,
            style="flagembedding-lightweight",
        ),
        begins=True,
        separator="\n",
        suffix=("\n", _SHORT_QUESTION),
        is_joint=False,
        answers=("Yes",),
    ),
    # The model card of Qwen3-Reranker.
    "qwen3-reranker": Style(
        prompt=Prompt(
            query_instruction="Given a web search query, retrieve relevant passages that answer the query",
            query_format="<Instruct>: {}\n<Query>: {}\n",
            passage_instruction="",
            passage_format="{}<Document>: {}",
            question=None,
            instructed_format="<Instruct>: {}\n<Query>: {}\n",
            keeps_end=True,
            style="qwen3-reranker",
        ),
        prefix="<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the"
        ' Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        suffix=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
        answers=("yes", "no"),
    ),
    # mxbai-rerank 0.1.6, mxbai_rerank/mxbai_rerank_v2.py.
    "mxbai-rerank-v2": Style(
        prompt=Prompt(
            query_instruction="",
            query_format="{}query: {}",
            passage_instruction="",
            passage_format="{}document: {}",
            question=None,
            instructed_format="instruction: {}\nquery: {}",
            style="mxbai-rerank-v2",
        ),
        prefix="<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n",
        separator="\n",
        suffix=(
            "\n",
            "You are a search relevance expert who evaluates how well documents match search queries. For each"
            " query-document pair, carefully analyze the semantic relationship between them, then provide your binary"
            " relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
        is_joint=False,
        answers=("1", "0"),
    ),
    # modeling_zeranker.py in the repositories of zerank-1, zerank-1-small and zerank-2. It answers the sigmoid of a
    # fifth of this logit. How an instruction is written is from vLLM's examples/pooling/score/template/zerank2.jinja.
    "zerank": Style(
        prompt=Prompt(
            query_instruction="",
            query_format="{}system\n{}",
            passage_instruction="",
            passage_format="{}user\n{}",
            question=None,
            instructed_format="system\n<query>{1}</query>\n<instruction>{0}</instruction>",
            keeps_end=True,
            strips=True,
            style="zerank",
        ),
        prefix="<|im_start|>",
        separator="<|im_end|>\n<|im_start|>",
        suffix=("<|im_end|>\n<|im_start|>assistant\n",),
        answers=("Yes",),
    ),
    # The model cards of ctxl-rerank-v2-instruct-multilingual-1b, -2b and -6b. The score is the logit of token 0.
    "ctxl-rerank-v2": Style(
        prompt=Prompt(
            query_instruction="",
            query_format="{}<Query> {} ??",
            passage_instruction="",
            passage_format="{}<Document> {}\n",
            question=None,
            instructed_format="<Query> {1} {0} ??",
            keeps_end=True,
            style="ctxl-rerank-v2",
        ),
        prefix="Check whether a given document contains information helpful to answer the query.\n",
        passage_first=True,
        answers=(0,),
    ),
}

# The models that their authors ask so: by the last part of their id the families of their class, and the style.
# Conversions to a head keep the name, and add "-seq-cls" to it.
PUBLISHED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "bge-reranker-v2-gemma": (("Gemma",), "flagembedding"),
    **dict.fromkeys([f"qwen3-reranker-{size}" for size in ("0.6b", "4b", "8b")], (("Qwen3",), "qwen3-reranker")),
    **dict.fromkeys(["mxbai-rerank-base-v2", "mxbai-rerank-large-v2"], (("Qwen2",), "mxbai-rerank-v2")),
    **dict.fromkeys(["zerank-1", "zerank-1-small", "zerank-2", "zerank-2-reranker"], (("Qwen3",), "zerank")),
    **dict.fromkeys(
        [f"ctxl-rerank-v2-instruct-multilingual-{size}" for size in ("1b", "2b", "6b")],
        (("Qwen2", "Qwen3"), "ctxl-rerank-v2"),
    ),
}
