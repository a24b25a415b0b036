"""Print what a training needs: tokens, steps, memory and floating-point operations."""

from typing import Any

import click

from lepmerge.commands.console import print_json, table
from lepmerge.progress import human_bytes


class Size(click.ParamType):
    """A number of bytes such as 16GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from lepmerge.config.schema import num_bytes

        try:
            return num_bytes(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


def estimated(config: Any, device: str, limit: int | None = None) -> dict[str, Any]:
    """Estimate a training for a device, which this machine need not have. With a limit, `auto` means a GPU."""
    import torch

    from lepmerge.device import choose_device
    from lepmerge.training.estimate import estimate
    from lepmerge.training.setting import prepare

    is_gpu = device.startswith("cuda") or (device == "auto" and limit is not None)
    chosen = torch.device("cuda") if is_gpu else choose_device(device)
    return {"output": str(config.target), **estimate(prepare(config, weights=False), chosen, limit=limit)}


def show_estimate(config: Any, device: str, as_json: bool, limit: int | None = None) -> None:
    """Print the estimated tokens, steps, memory and FLOP of a training."""
    found = estimated(config, device, limit)
    if as_json:
        print_json(found)
        return
    rows = found["rows"]
    about = "" if found["tokens_are_exact"] else "about "
    click.echo(f"output    {config.target}")
    click.echo(f"model     {found['model']}: {rows['old']} → {rows['new']} rows, trained: {rows['trained'] or 'none'}")
    if "lora" in found:
        click.echo(f"lora      {found['lora']['modules']} modules, {found['lora']['parameters']:,} parameters")
    if "teacher" in found:
        click.echo(f"teacher   {found['teacher']['model']}: {about}{found['teacher']['tokens']:,} tokens")
    for source in found["sources"]:
        click.echo(f"data      {source['path']}: {about}{source['tokens']:,} tokens")
    click.echo(
        f"{found['objective']:8}  {about}{found['tokens']:,} tokens, {about}{found['steps']:,} steps of at most "
        f"{found['tokens_per_step']:,} ({found['micro_batch']} × {config.block_size} at once)"
    )
    _show_memory(found)
    click.echo(f"compute   {found['flop']:.2e} FLOP, {found['flop_per_token'] / 1e9:.3g} GFLOP per token")


def show_fit(needed: int, limit: int) -> None:
    """Print whether a run of a recipe fits the memory of its device."""
    click.echo(f"fit       {human_bytes(limit)}: {'yes' if needed <= limit else 'no'}, {human_bytes(needed)}")


def _show_memory(found: dict[str, Any]) -> None:
    memory = {part: size for part, size in found["memory"].items() if size and part != "total"}
    again = ", with activation checkpointing" if found["activation_checkpointing"] else ""
    click.echo(f"memory    about {human_bytes(found['memory']['total'])}{again}: "
               f"{', '.join(f'{part} {human_bytes(size)}' for part, size in memory.items())}")  # fmt: skip
    if "host_memory" in found:
        click.echo(f"host      about {human_bytes(found['host_memory'])} for masters and optimizer")
    if "memory_limit" in found:
        from lepmerge.training.fitting import settings_of

        show_fit(found["memory"]["total"], found["memory_limit"])
        if found.get("changes"):
            needed = human_bytes(found["memory_with_changes"])
            click.echo(f"          it fits ({needed}) with {settings_of(found['changes'])}")
        elif not found["fits"]:
            click.echo("          no change of the configuration would make it fit")
    others = found["memory_with_one_block"]
    columns = list(dict.fromkeys((entry["processes"], entry["offload"]) for entry in others))
    lines = list(dict.fromkeys((entry["precision"], entry["rows"]) for entry in others))
    of = {(e["precision"], e["rows"], e["processes"], e["offload"]): human_bytes(e["bytes"]) for e in others}
    click.echo("memory per device with one block per forward pass:")
    header = ["precision", "rows", *(_heading(*column) for column in columns)]
    lines = [[*line, *(of.get((*line, *column), "–") for column in columns)] for line in lines]
    click.echo(table(lines, header=header))


def _heading(processes: int, offload: bool) -> str:
    return f"{processes} process{'es' if processes > 1 else ''}{', offload' if offload else ''}"
