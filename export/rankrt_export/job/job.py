"""The job: what an export needs to know, found once and carried from step to step. Computes and writes nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankrt.artifact.manifest import Score, Template
from rankrt.artifact.precisions import VariantKey
from rankrt_export.architectures import ARCHITECTURES
from rankrt_export.checkpoint.checkpoint import Checkpoint
from rankrt_export.checkpoint.tokenizer import read_tokenizer, template_of
from rankrt_export.decoders.compressions import compressions_of
from rankrt_export.decoders.prompts import answer_tokens, prompted_template, style_for
from rankrt_export.decoders.readouts import readouts_of
from rankrt_export.decoders.styles import Style
from rankrt_export.graph.blueprint import Readout
from rankrt_export.job.options import Options
from rankrt_export.text.texts import Texts, sample
from rankrt_export.verify.verify import Limits, limits_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A checkpoint, and all that is decided before anything is computed.

    limits       how far from PyTorch each variant may be; its keys are the variants to write, in their order
    template     how a row is put together
    score        what a score is
    style        how a decoder is asked; None for any other model
    readouts     after which layers a decoder's score is read, in ascending order; of any other model none
    compressions  how many tokens of a passage become one, by the layer after which they do
    sample       the text that comes with rankrt, which examples for other hosts are taken from
    texts        what to verify on; None to leave that out
    calibration  the text that 8 bits are calibrated on
    n_parameters, n_layer_parameters  how many numbers the checkpoint has, with and without tables of vectors
    """

    checkpoint: Checkpoint
    limits: Mapping[VariantKey, Limits]
    template: Template
    score: Score
    style: Style | None
    readouts: Sequence[Readout]
    compressions: Mapping[int, int]
    sample: Texts
    texts: Texts | None
    calibration: Texts
    n_parameters: int
    n_layer_parameters: int

    @property
    def variants(self) -> Sequence[VariantKey]:
        """Which variants to write."""
        return tuple(self.limits)

    @property
    def calibrated(self) -> Mapping[VariantKey, Limits]:
        """Those that are calibrated, with their limits."""
        return {key: limits for key, limits in self.limits.items() if key.row.is_calibrated}

    @property
    def is_traced(self) -> bool:
        """Whether torch traces the graph, because no architecture describes it."""
        return self.checkpoint.architecture not in ARCHITECTURES


def make_job(checkpoint: Checkpoint, variants: Iterable[VariantKey], options: Options) -> Job:
    """Decide how variants of a checkpoint are exported.

    Raises CheckpointError if its tokenizer does not say how a row is put together, or if nothing says how it is asked.
    """
    tokenizer, saved = read_tokenizer(checkpoint), checkpoint.saved
    if checkpoint.is_decoder:
        style = style_for(checkpoint, tokenizer, options.prompt)
        template = prompted_template(tokenizer, style, checkpoint.tokenizer_config)
        answers = answer_tokens(tokenizer, style)
        readouts = readouts_of(checkpoint, tokenizer, style, options.cutoff_layers)
        exits = [readout.layer for readout in readouts]
        compressions = compressions_of(checkpoint, exits, options.compress_layers, options.compress_ratio)
    else:
        style, template, answers, readouts, compressions = None, template_of(tokenizer, saved), (), [], {}
    ours = sample()
    texts = ours + options.texts if options.texts else ours
    return Job(
        checkpoint=checkpoint,
        limits={
            key: limits_for(key.precision, options.max_difference, options.min_tau, is_decoder=checkpoint.is_decoder)
            for key in variants
        },
        template=template,
        score=Score(answers=answers or checkpoint.labels, activation=saved.activation),
        style=style,
        readouts=readouts,
        compressions=compressions,
        sample=ours,
        texts=texts if options.is_verified else None,
        calibration=options.calibration or ours,
        n_parameters=_count_parameters(checkpoint, checkpoint.weights.names),
        n_layer_parameters=_count_parameters(checkpoint, (n for n in checkpoint.weights.names if "embed" not in n)),
    )


def _count_parameters(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    return sum(int(np.prod(checkpoint.weights.shape(name))) for name in names)
