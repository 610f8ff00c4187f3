"""An artifact in words, for terminals."""

from collections.abc import Iterable, Sequence

from rankrt.artifact.manifest import Artifact, Manifest, Variant
from rankrt.artifact.precisions import TARGETS


def describe(artifact: Artifact) -> str:
    """Return lines about an artifact: its origin, what it takes, its variants and their verification."""
    manifest = artifact.manifest
    revision = f" at {manifest.source.revision}" if manifest.source.revision else ""
    lines = [
        f"{manifest.name}: {manifest.architecture}, up to {manifest.max_length} tokens",
        f"exported from {manifest.source.id}{revision} by {manifest.producer}",
        *_about(manifest),
        *_calibrated(artifact),
        f"identity {artifact.identity[:16]}, {len(manifest.files)} files of {_megabytes(artifact, manifest.files)}",
        "",
        *_table([_HEADER, *(_row(artifact, variant) for variant in manifest.variants)]),
    ]
    lines += [line for variant in manifest.variants for line in (*_exits(variant), *_kept(variant))]
    if verified := [v.verification for v in manifest.variants if v.verification]:
        first = verified[0]
        lines += ["", f"verified on {first.n_pairs} pairs of {first.n_queries} queries against {first.reference}"]
    own = (variant.name for variant in manifest.variants if variant.key.needs_kernels)
    lines += [f"{name}: by rankrt's own kernels; rankrt doctor says whether they run here" for name in own]
    # Of TensorRT's variants the export verified the graph alone, on a CPU.
    targets = dict.fromkeys(variant.target for variant in manifest.variants if TARGETS[variant.target].is_gpu)
    prepare = f"rankrt prepare {artifact.folder} --device"
    lines += [f"{target}: checked on the GPU itself by {prepare} {target}" for target in targets]
    return "\n".join(lines)


def _about(manifest: Manifest) -> Iterable[str]:
    """Say how the model is asked and what a score is. Add languages and licence of its model card."""
    if (prompt := manifest.template.prompt) is not None and prompt.style:
        place = "takes an instruction" if prompt.instructed_format else "takes no instruction"
        named = f": {', '.join(prompt.instructions)} by name" if prompt.instructions else ""
        yield f"asked in the style {prompt.style}, as {prompt.said_by} says; {place}{named}"
    if (score := manifest.score) is not None:
        answers = [f"the logit of {answer!r}" for answer in score.answers]
        default = "; sentence-transformers answers its sigmoid" if score.activation == "sigmoid" else ""
        yield f"a score is {' less '.join(answers) or 'the logit of its head'}{default}"
    card = {"languages": ", ".join(manifest.source.languages), "license": manifest.source.license}
    if found := [f"{name} {value}" for name, value in card.items() if value]:
        yield f"by its model card: {'; '.join(found)}"


def _calibrated(artifact: Artifact) -> Iterable[str]:
    """Say what probabilities were fitted to, and how well they fit."""
    if (found := artifact.calibration) is not None:
        layer = "" if found.cutoff_layer is None else f" after layer {found.cutoff_layer}"
        yield (
            f"calibrated ({found.method}) on {found.data.n_pairs} pairs of {found.data.n_queries} queries, by"
            f" {found.variant}{layer}: expected calibration error {found.error_after:.3f}, {found.error_before:.3f}"
            " of the sigmoid"
        )


_HEADER = ("variant", "size", "max diff", "mean diff", "tau (min)", "overlap")


def _row(artifact: Artifact, variant: Variant) -> tuple[str, ...]:
    size = _megabytes(artifact, variant.files)
    if (found := variant.verification) is None:
        return (variant.name, size, "not verified", "", "", "")
    return (
        variant.name,
        size,
        f"{found.max_difference:.1e}",
        f"{found.mean_difference:.1e}",
        f"{found.mean_tau:.4f} ({found.min_tau:.2f})",
        f"{found.top_k_overlap:.0%} of top {found.top_k}",
    )


def _exits(variant: Variant) -> Iterable[str]:
    """Say where passages are compressed, and at which of several layers scores can be read, compared with PyTorch."""
    if shorter := variant.compressions:
        yield ""
        layers = ", ".join(str(one.layer) for one in shorter)
        yield f"{variant.name}: every {shorter[0].ratio} tokens of a passage become one after layer {layers}"
    if len(variant.exits) < 2:
        return
    yield ""
    yield f"{variant.name}: scores can be read after these layers"
    for end in variant.exits:
        found = end.verification
        yield f"  {end.layer:>3}  " + (f"max diff {found.max_difference:.1e}" if found else "not verified")


def _kept(variant: Variant) -> Iterable[str]:
    """Say how much of a variant is in 8 bits, and which layers are not."""
    if (found := variant.quantization) is None:
        return
    yield ""
    share, rest = f"{found.int8_share:.0%} of the multiply-adds", TARGETS[variant.target].unquantized
    yield f"{variant.name}: {share} in {variant.precision}, {len(found.kept)} layers left in {rest}"
    for layer in found.kept:
        yield f"  {layer.name:<50} would drift by {layer.drift:.1e} (root mean square)"


def _megabytes(artifact: Artifact, names: Iterable[str]) -> str:
    return f"{sum(artifact.manifest.files[name].n_bytes for name in names) / 1e6:,.0f} MB"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
