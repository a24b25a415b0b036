"""lepmerge extract: save the difference between two models as a PEFT adapter."""

from pathlib import Path

import click

from lepmerge.commands.console import print_json, progress_bar
from lepmerge.commands.options import json_option, quiet_option
from lepmerge.progress import human_bytes


@click.command()
@click.argument("base")
@click.argument("tuned")
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="New folder for the adapter.")  # fmt: skip
@click.option("--rank", type=click.IntRange(min=1), help="Rank of every matrix.  [default: 32]")
@click.option("--energy", type=click.FloatRange(0, 1, min_open=True), metavar="PART",
              help="Instead of --rank: for each matrix, take the smallest rank that keeps this fraction of the "
                   "squared norm of its change.")  # fmt: skip
@click.option(
    "--device", default="auto", show_default=True, help="Device to compute on: auto, cpu, cuda, cuda:N or mps."
)
@click.option("--overwrite", is_flag=True, help="Replace an adapter in FOLDER once the new one is complete.")
@json_option
@quiet_option
def extract(
    base: str,
    tuned: str,
    output: Path,
    rank: int | None,
    energy: float | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Save the difference between two models as a PEFT adapter.

    The adapter turns BASE into TUNED. Each matrix that changed is approximated at a low rank. Norms, biases and
    embedding tables that changed are saved whole. The tokenizer is saved too if the vocabularies differ. An
    interrupted run resumes.

    \b
    Example:
      lepmerge extract models/instruct out/instruct-ru -o adapters/ru --rank 64
    """
    if rank is not None and energy is not None:
        raise click.UsageError("give either --rank or --energy")
    from lepmerge.device import choose_device
    from lepmerge.extraction.extract import Wanted
    from lepmerge.extraction.extract import extract as extract_adapter
    from lepmerge.models.adapter_file import WEIGHTS
    from lepmerge.models.adapters import open_model
    from lepmerge.paths import HUB_ID

    first, second = open_model(base), open_model(tuned)
    wanted = Wanted(energy=energy) if energy is not None else Wanted(rank=rank or 32)
    hub_id = base if HUB_ID.fullmatch(base) and not Path(base).exists() else None
    total = sum(tensor.num_bytes for tensor in first.tensors.values())
    with progress_bar(total, quiet=quiet or as_json) as progress:
        folder = extract_adapter(
            first,
            second,
            output,
            wanted=wanted,
            base_name=hub_id,
            device=choose_device(device),
            overwrite=overwrite,
            progress=progress,
        )
    size = (folder / WEIGHTS).stat().st_size
    if as_json:
        print_json({"output": str(folder), "bytes": size})
    elif not quiet:
        click.echo(f"{folder} ({human_bytes(size)})")
