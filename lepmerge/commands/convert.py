"""lepmerge convert: convert a GGUF file to a model folder."""

from pathlib import Path

import click

from lepmerge.commands.console import print_json, progress_bar
from lepmerge.commands.options import json_option


@click.command()
@click.argument("gguf", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Data type of the weights.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model in FOLDER once the new one is complete.")
@json_option
def convert(gguf: Path, folder: Path, dtype: str, overwrite: bool, as_json: bool) -> None:
    """Convert a GGUF file to a model folder.

    FOLDER gets safetensors, tokenizer and chat template. Quantized weights are dequantized. Use this if a model is
    available only as a GGUF file. It needs a package: pip install 'lepmerge[gguf]'.

    \b
    Example:
      lepmerge convert SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from lepmerge.merge.convert import convert_gguf

    disable_progress_bar()
    with progress_bar(gguf.stat().st_size, quiet=as_json) as progress:
        written = convert_gguf(gguf, folder, dtype=getattr(torch, dtype), overwrite=overwrite, progress=progress)
    if as_json:
        print_json({"output": str(written), "dtype": dtype})
    else:
        click.echo(written)
