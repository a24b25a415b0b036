"""lepmerge train: train the embeddings of a model for a new vocabulary."""

from pathlib import Path
from typing import Any

import click

from lepmerge.commands.console import print_json, table
from lepmerge.commands.estimate import Size, show_estimate
from lepmerge.commands.logs import show_started


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the configuration, e.g. model=PATH. Repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Print an estimate of tokens, steps, memory and FLOP, and stop.")
@click.option("--probe", metavar="STEPS", type=click.IntRange(min=1),
              help="Train this many steps with each init and learning rate, print a ranking, and stop.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="Device to train on: auto, cpu, cuda, cuda:N or mps.")
@click.option("--memory", metavar="SIZE", type=Size(),
              help="Memory of the device, e.g. 16GB. With --dry-run, say what to change to fit it; `--device auto` is "
              "then a GPU.  [default: the memory of the GPU]")  # fmt: skip
@click.option("--compile", is_flag=True, help="Compile the body with torch.compile.")
@click.option(
    "--full",
    type=click.Path(file_okay=False),
    help="Also write the complete model, with the trained embeddings and the merged adapter, to this folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace a finished training in the output folder.")
@click.option("--restart", is_flag=True,
              help="Discard an unfinished training of another configuration at the same output.")  # fmt: skip
@click.option("--log-with", "trackers", multiple=True, metavar="TRACKER",
              help="Log metrics to this tracker of accelerate: tensorboard, wandb, … Repeatable.")  # fmt: skip
@click.option("--shard", is_flag=True,
              help="Share out the body, the float32 masters and the optimizer states over the processes of `accelerate "
              "launch` (FSDP2).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
def train(
    config: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    probe: int | None,
    device: str,
    memory: int | None,
    compile: bool,
    full: str | None,
    overwrite: bool,
    restart: bool,
    trackers: tuple[str, ...],
    shard: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train the embeddings of a model on text or chats.

    CONFIG is a YAML file. All other weights stay frozen, or learn through a LoRA adapter. An interrupted training
    resumes where it stopped.

    \b
    Example:
      lepmerge train mistral-7b-ru.train.yaml --set batch_size=64
      accelerate launch -m lepmerge train mistral-7b-ru.train.yaml --shard
    """
    from lepmerge.training.config import load_train_config

    loaded = load_train_config(config, overrides)
    show_started(f"train {config}: loading", quiet=quiet or as_json or dry_run or probe is not None)
    from lepmerge.device import choose_device
    from lepmerge.training.processes import check_trackers

    check_trackers(trackers)
    if full is not None:
        _check_full(loaded, Path(full), overwrite)
    if dry_run:
        show_estimate(loaded, device, as_json, memory)
        return
    chosen = choose_device(device)
    if probe is not None:
        _show_probe(_probed(loaded, probe, chosen, memory, quiet or as_json), as_json)
        return
    report = run_training(
        loaded, device=chosen, memory=memory, compile=compile, overwrite=overwrite, restart=restart, trackers=trackers,
        shard=shard, quiet=quiet or as_json,
    )  # fmt: skip
    if report is None:  # not the main process, which prints the report
        return
    if full is not None:
        _write_full(loaded, Path(full), device, overwrite, quiet or as_json)
    if as_json:
        print_json({"output": str(loaded.target), **report})
    elif not quiet:
        _show_report(report)
        click.echo(f"{full or loaded.target}")


def run_training(
    config: Any,
    *,
    device: Any,
    quiet: bool,
    memory: int | None = None,
    compile: bool = False,
    overwrite: bool = False,
    restart: bool = False,
    trackers: tuple[str, ...] = (),
    shard: bool = False,
) -> dict[str, Any] | None:
    """Train with a progress bar. Return the report in the main process, None in the others."""
    from transformers.utils.logging import disable_progress_bar

    from lepmerge.commands.training_progress import training_progress
    from lepmerge.training.events import TrainingEvent
    from lepmerge.training.output import finished_report
    from lepmerge.training.processes import Processes
    from lepmerge.training.run import train as train_embeddings

    disable_progress_bar()
    processes = Processes(device, trackers, shard=shard)
    processes.track(config)
    is_main = processes.group.rank == 0
    with processes.noticing_losses(), training_progress(quiet or not is_main) as show:

        def on_event(event: TrainingEvent) -> None:
            show(event)
            processes.log(event)

        train_embeddings(
            config,
            group=processes.group,
            memory=memory,
            compile=compile,
            overwrite=overwrite,
            restart=restart,
            on_event=on_event,
        )
    processes.close()
    return finished_report(config.target) if is_main else None


def _check_full(config: Any, folder: Path, overwrite: bool) -> None:
    """Check the folder of the complete model before the training.

    A folder that lepmerge made may be the result of this very command: that is known when the training is finished.
    """
    from lepmerge.output.checks import check_target
    from lepmerge.output.run import RUN_FILE

    inputs = [config.target, config.resolve(config.model.path)]
    check_target(folder, inputs=inputs, overwrite=overwrite or (folder / RUN_FILE).exists(), key="--full")


def _write_full(config: Any, folder: Path, device: str, overwrite: bool, quiet: bool) -> None:
    """Write the complete model with the trained embeddings and the merged adapter.

    This runs a recipe, so that the output gets the checks and the resuming of `lepmerge run`.
    """
    from lepmerge.commands.console import progress_bar
    from lepmerge.config.entries import AdaptedEntry
    from lepmerge.merge.execute import run_plan
    from lepmerge.merge.plan import make_plan
    from lepmerge.merge.recipe import Output, Recipe
    from lepmerge.operations.arithmetic import Arithmetic
    from lepmerge.operations.swap_vocabulary import SwapVocabulary

    model = config.resolve(config.model.path)
    path = str(model) if model.exists() else config.model.path
    base = AdaptedEntry(path=path, revision=config.model.revision)
    trained = str(config.target.absolute())
    output = Output(path=str(folder.absolute()))
    if config.lora is not None:
        recipe = Recipe(models={"model": base.model_copy(update={"adapter": trained})}, start="model", output=output)
    else:
        steps = [
            SwapVocabulary(op="swap_vocabulary", tokenizer="adapted"),
            Arithmetic(op="arithmetic", tensors="embeddings", expression="adapted"),
        ]
        adapted = AdaptedEntry(path=trained)
        recipe = Recipe(models={"base": base, "adapted": adapted}, start="base", steps=steps, output=output)
    plan = make_plan(recipe)
    with progress_bar(plan.sizes["written"], quiet=quiet) as progress:
        run_plan(plan, device=device, overwrite=overwrite, progress=progress)


def _probed(config: Any, steps: int, device: Any, memory: int | None, quiet: bool) -> list[dict[str, Any]]:
    from lepmerge.commands.training_progress import training_progress
    from lepmerge.training.group import Group
    from lepmerge.training.probe import probe

    with training_progress(quiet) as on_event:
        return probe(config, steps=steps, group=Group(device), memory=memory, on_event=on_event)


def _show_probe(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"trials": found})
        return
    names = list(found[0]["bits_per_byte"])
    rows = [[entry["init"], f"{entry['learning_rate']:g}", *entry["bits_per_byte"].values()] for entry in found]
    click.echo(table(rows, header=["init", "learning rate", *(f"{name} bits per byte" for name in names)]))


def _show_report(report: dict[str, Any]) -> None:
    loss, bits = report["loss"], report["bits_per_byte"]
    click.echo(f"{report['steps']} steps, {report['tokens']:,} tokens, learning rate {report['learning_rate']:g}: "
               f"loss {loss['first']:.3f} → {loss['last']:.3f} (first and last tenth of the steps)")  # fmt: skip
    for name, first in bits.get("first", {}).items():
        click.echo(
            f"{name}: {first:.4f} → {bits['last'][name]:.4f} bits per byte (before the first step → after the last)"
        )
