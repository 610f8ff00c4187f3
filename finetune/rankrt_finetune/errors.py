"""What can go wrong with training, beside what is wrong with an input."""

from rankrt.errors import RankrtError


class TrainingError(RankrtError):
    """A reranker could not be trained as asked."""


class MemoryShort(TrainingError):
    """A batch does not fit into memory; the message says which one does."""
