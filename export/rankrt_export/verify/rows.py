"""The rows that an artifact's own tokenizer makes, without a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rankrt.artifact.manifest import Artifact
from rankrt.loading.tokenizer import open_tokenizer
from rankrt.text.options import Rules
from rankrt.text.pairs import Encoded, Pair, PairTokenizer
from rankrt_export.checkpoint.families import DECODERS

# Rows are verified up to this length; the sample has one that is longer.
VERIFIED_LENGTH = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMaker:
    """A tokenizer and the rules by which it cuts."""

    tokenizer: PairTokenizer
    rules: Rules

    @classmethod
    def open(cls, artifact: Artifact) -> Self:
        """Open an artifact's tokenizer, to cut rows as the reference cuts them."""
        manifest = artifact.manifest
        return cls(
            tokenizer=PairTokenizer(open_tokenizer(artifact, prepare=False), manifest.template),
            rules=verified_rules(artifact),
        )

    def encode(self, pairs: Sequence[Pair]) -> Encoded:
        """Return the rows of token ids that these pairs become."""
        return self.tokenizer.encode(pairs, self.rules)


def verified_rules(artifact: Artifact) -> Rules:
    """Return the rules by which the reference cuts rows."""
    template = artifact.manifest.template
    return Rules(
        max_length=min(VERIFIED_LENGTH, template.max_length_within(artifact.manifest.max_length)),
        truncation="only_passage" if artifact.manifest.architecture in DECODERS else "longest_first",
    )
