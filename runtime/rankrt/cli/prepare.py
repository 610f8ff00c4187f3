"""`rankrt prepare`: what loading on this host takes, done before it is needed; on a GPU it is verified there, too."""

from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from rankrt import Reranker
from rankrt.artifact.manifest import Artifact, Variant, open_artifact
from rankrt.artifact.precisions import PRECISIONS, Precision
from rankrt.cli import streams
from rankrt.cli.arguments import Choice, Command, Whole, file_argument, option
from rankrt.cli.options import DEVICE_HELP
from rankrt.errors import RankrtError
from rankrt.host.device import Device
from rankrt.host.host import Host, this_host
from rankrt.loading.choose import Asked, measurable, place, place_on_gpu
from rankrt.loading.measure import measure
from rankrt.loading.prepare import n_steps, prepare_for_gpu


@click.command("prepare", cls=Command, epilog="Example: rankrt prepare ./bge-m3 --device cuda")
@file_argument("artifact", type=Path, help="An artifact's folder.")
@option(
    "--device",
    default="auto",
    metavar="D",
    help=DEVICE_HELP,
)
@option(
    "--precision",
    type=Choice(["auto", *PRECISIONS]),
    default="auto",
    help="Precision to prepare. auto is the best one for a CPU, once bf16 was measured, and all that the artifact has"
    " for a GPU.",
)
@option(
    "--max-length",
    type=Whole(),
    metavar="N",
    help="Most tokens of a row.",
    show_default="512 or the model's limit",
)
def prepare(artifact: Path, device: str, precision: Any, max_length: int | None) -> None:
    """Prepare variants, one after the other, and print what is ready."""
    found, where = open_artifact(artifact), Device.parse(device)
    if where is not None and where.is_gpu:
        _prepare_for_gpu(found, where, precision, max_length)
        return
    measured = [variant for variant in measurable(found) if precision in ("auto", variant.precision)]
    for variant in measured:
        _measure(found, variant, this_host(), is_named=precision != "auto")
    if measured and precision != "auto":
        return
    with Reranker.load(found.folder, device=device, precision=precision, max_length=max_length) as reranker:
        as_it_is = "; it runs from the artifact as it is" if reranker.variant.key.needs_kernels else ""
        print(f"{reranker.variant.name} is ready on this host{as_it_is}")


def _measure(artifact: Artifact, variant: Variant, host: Host, *, is_named: bool) -> None:
    """Verify a variant on this processor, and measure whether it is faster than fp32.

    One that was not named is left out where it cannot run.
    """
    try:
        asked = Asked(device=Device("cpu"), precision=variant.precision)
        record = measure(place(artifact, asked, host), host.machine.cores.n)
    except RankrtError as error:
        if is_named:
            raise
        print(f"{variant.name} is left out: {error}")
        return
    taken = "takes it" if record.is_faster else "does not take it"
    print(
        f"{variant.name} is ready on this host: {record.n_examples} examples differ from PyTorch by up to"
        f" {record.max_difference:.1e} (limit {record.limit:.1e}). It takes {record.relative_time:.2f} of fp32's time,"
        f" so precision='auto' {taken}"
    )


def _prepare_for_gpu(artifact: Artifact, device: Device, precision: Precision | Any, max_length: int | None) -> None:
    for placement in place_on_gpu(artifact, device, precision, this_host()):
        name, total = placement.variant.name, n_steps(artifact, device, max_length)
        with tqdm(desc=name, total=total, disable=not streams.is_terminal()) as bar:

            def show(done: str, bar: Any = bar) -> None:
                bar.set_postfix_str(f"{done} is ready")
                bar.update()

            found = prepare_for_gpu(placement, max_length=max_length, progress=show)
        rows = "rows of any length" if found.max_length is None else f"rows of up to {found.max_length} tokens"
        print(
            f"{name} is ready on {found.key.depends_on['gpu']} for {rows}: {found.n_examples} examples differ from"
            f" PyTorch by up to {found.max_difference:.1e} (limit {found.limit:.1e})"
        )
