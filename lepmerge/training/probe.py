"""Train a few steps with every init and learning rate, to see which combination is worth a full training."""

import tempfile
from pathlib import Path
from typing import Any

from lepmerge.computation.inits import INITS
from lepmerge.errors import RecipeError
from lepmerge.training.config import TrainConfig
from lepmerge.training.events import Note, OnEvent
from lepmerge.training.group import Group
from lepmerge.training.held_out import held_out_texts
from lepmerge.training.loop import StopSignal, Track
from lepmerge.training.session import fitted, open_session
from lepmerge.training.setting import prepare

PROBED_RATES = (2e-5, 5e-5, 1e-4, 2e-4)
"""The learning rates that are tried if the configuration gives only one (paper section 2.4.1)."""
WARMUP_SHARE = 0.1


def probe(
    config: TrainConfig, *, steps: int, group: Group, memory: int | None = None, on_event: OnEvent
) -> list[dict[str, Any]]:
    """Return init, learning rate and held-out bits per byte after `steps` steps of each combination, best first.

    The learning rate rises during the first tenth of the steps, then stays constant. Nothing is written to the output.

    Raises:
        RecipeError: the configuration has no held-out text to measure on.
    """
    if config.evaluate is None:
        raise RecipeError("--probe ranks by held-out bits per byte: give evaluate.data")
    rates = config.rates if len(config.rates) > 1 else list(PROBED_RATES)
    found = []
    with tempfile.TemporaryDirectory(prefix="lepmerge-probe-") as temporary, StopSignal().listening() as stop:
        folder = Path(temporary)
        for init in INITS if config.tokenizer else ["mean"]:
            changed = {"init": init, "warmup_steps": max(1, round(steps * WARMUP_SHARE)), "schedule": "constant"}
            setting = prepare(config.model_copy(update={**changed, "learning_rate": rates[0], "sweep": None}))
            fitting = fitted(setting, group, memory)
            held_out = held_out_texts(setting)
            session = open_session(setting, folder, group, stop, on_event, held_out=held_out, fitting=fitting)
            for rate in rates:
                on_event(Note(f"probes {init}, {rate:g}"))
                track = Track(folder, f"{init}-{rate:g}")
                session.run(session.learner(rate), track, until=min(steps, session.steps))
                bits = track.lines()[-1]["bits_per_byte"]
                found.append({"init": init, "learning_rate": rate, "bits_per_byte": bits})
                track.checkpoint.unlink()
    first = next(iter(config.evaluate.data))
    return sorted(found, key=lambda entry: entry["bits_per_byte"][first])
