"""An artifact in words, for terminals."""

from collections.abc import Iterable, Sequence

from rankrt.artifact import Artifact, Variant


def describe(artifact: Artifact) -> str:
    """Return lines about an artifact: where it came from, what it takes, its variants and how they were verified."""
    manifest = artifact.manifest
    revision = f" at {manifest.source.revision}" if manifest.source.revision else ""
    lines = [
        f"{manifest.name}: {manifest.architecture}, up to {manifest.max_length} tokens",
        f"exported from {manifest.source.id}{revision} by {manifest.producer}",
        f"identity {artifact.identity[:16]}, {len(manifest.files)} files of {_megabytes(artifact, manifest.files)}",
        "",
        *_table([_HEADER, *(_row(artifact, variant) for variant in manifest.variants)]),
    ]
    if verified := [v.verification for v in manifest.variants if v.verification]:
        first = verified[0]
        lines += ["", f"verified on {first.n_pairs} pairs of {first.n_queries} queries against {first.reference}"]
    return "\n".join(lines)


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


def _megabytes(artifact: Artifact, names: Iterable[str]) -> str:
    return f"{sum(artifact.manifest.files[name].n_bytes for name in names) / 1e6:,.0f} MB"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
