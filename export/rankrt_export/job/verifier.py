"""Comparing the variants of a job with the PyTorch model, which is asked once whatever is written again."""

from contextlib import closing
from pathlib import Path

import msgspec

from rankrt.artifact.manifest import Artifact, Manifest, Variant, open_artifact, write_manifest
from rankrt_export.job.job import Job
from rankrt_export.job.options import Bar
from rankrt_export.text.texts import Texts
from rankrt_export.verify.rows import RowMaker
from rankrt_export.verify.scorers import can_run, load
from rankrt_export.verify.verify import Reference, decoder_reference, example_pairs, reference, verify

# A TensorRT engine is checked by them where it is built.
N_EXAMPLES = 24


class Verifier:
    """Compares variants, and remembers the reference and the figures from try to try.

    What a variant computes depends on the checkpoint and its own recipe only, so its figures hold in the next try.
    """

    def __init__(self, job: Job, bar: Bar) -> None:
        """Take a job; without texts nothing is compared."""
        self._job = job
        self._bar = bar
        self._reference: Reference | None = None
        self._found: dict[Variant, Variant] = {}

    def verify(self, folder: Path, manifest: Manifest) -> Manifest:
        """Return the manifest with the figures of every variant that can be run here, and examples for other hosts.

        Raises VariantError for the first that is outside its limits.
        """
        if self._job.texts is None:
            return manifest
        write_manifest(manifest, folder)
        artifact = open_artifact(folder)
        against = self._reference = self._reference or self._ask_pytorch(artifact, self._job.texts)
        for variant in manifest.variants:
            if variant not in self._found:
                self._found[variant] = self._compare(artifact, variant, against)
        variants = tuple(self._found[variant] for variant in manifest.variants)
        return msgspec.structs.replace(manifest, variants=variants, examples=against.examples)

    def _compare(self, artifact: Artifact, variant: Variant, against: Reference) -> Variant:
        """Return a variant with its figures, or as it is if this host cannot run it."""
        if not can_run(variant):
            return variant
        n_pairs = len(against.texts.pairs)
        with closing(load(artifact, variant)) as scorer, self._bar(variant.name, n_pairs, "pair") as progress:
            return verify(scorer, against, self._job.limits[variant.key], progress)

    def _ask_pytorch(self, artifact: Artifact, texts: Texts) -> Reference:
        """Score the texts and the examples, in rows that the artifact's own tokenizer makes as well."""
        job, rows = self._job, RowMaker.open(artifact)
        examples = example_pairs(job.sample, rows, N_EXAMPLES)
        with self._bar("PyTorch", len(texts.pairs) + len(examples), "pair") as progress:
            if job.style is None:
                return reference(job.checkpoint, rows, texts, examples, progress)
            asked = (job.style, job.readouts, job.compressions)
            return decoder_reference(job.checkpoint, rows, *asked, texts, examples, progress)
