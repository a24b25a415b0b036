"""Which way of propagation is best? Every method on models of two widths, three seeds, two strengths of tuning.

python benchmarks/methods [--work FOLDER] [--widths 128] [--seeds 1]

Makes what is not made yet in FOLDER (about 20 CPU minutes for a seed of width 128, 40 for one of 256), measures what is
not measured yet, and writes benchmarks/results/methods.json. Fewer widths or seeds need --output NAME, so that the
committed results stay. With --calibrated it measures calibration instead and writes benchmarks/results/calibrated.json,
where rows of earlier calls stay. `report.py` makes docs/methods.md of both files.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from calibration import KINDS, STARTS, calibration
from measure import RESULTS, Report
from models import REGIMES, STRENGTHS, TASKS, Models, Texts
from scores import bits_per_byte, right_answers
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from ways import Cell, Tables, core, ideas, probes

from lepmerge import open_model

LANGUAGES = ("ru", "en")
CELLS = [
    *((128, seed, strength) for seed in (1, 2, 3) for strength in STRENGTHS),
    *((256, seed, "strong") for seed in (1, 2)),
]
"""Width, seed and strength of what is studied."""
SCREEN = (128, 1, "strong", "new")
"""The kind of model on which ideas are tried that lepmerge does not have."""
PROBED = (128, "strong")
"""Width and strength of the models on which a part of the shared rows is kept."""


class Measuring:
    """Scores of models on the held-out prompts and texts, each kept in its own file."""

    def __init__(self, texts: Texts, folder: Path) -> None:
        self.folder = folder
        self.prompts = texts.held_out_prompts()
        self.texts = {language: texts.held_out_text(language) for language in LANGUAGES}
        _, self.old_tokenizer, self.new_tokenizer = texts.tokenizers
        self.longest = {  # tokens of a reply; all models may answer in old tokens, as they were tuned
            task: 2 + max(len(self.old_tokenizer.encode(prompt.answer).ids) for prompt in found)
            for task, found in self.prompts.items()
        }
        answers = {prompt.answer for found in self.prompts.values() for prompt in found}
        self.answer_tokens = sorted(
            {id for answer in answers for id in self.old_tokenizer.encode(answer, add_special_tokens=False).ids}
        )

    def kept(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the scores in a file, measured first if it is not there."""
        path = self.folder / f"{name.replace('/', '_').replace(' ', '_')}.json"
        if not path.exists():
            found = measure()
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(found))
            partial.rename(path)
            print(f"  {name}: {shown(found)}", flush=True)
        return json.loads(path.read_text())

    def scores(self, model: LlamaForCausalLM, tokenizer: Tokenizer, prompt_tokenizer: Tokenizer) -> dict[str, Any]:
        """Return right answers by task as a text of 0 and 1, and bits per byte by language."""
        right = {}
        for task in TASKS:
            found = right_answers(model, prompt_tokenizer, self.prompts[task], longest=self.longest[task])
            right[task] = "".join("01"[each] for each in found)
        bits = {language: bits_per_byte(model, tokenizer, self.texts[language]) for language in LANGUAGES}
        return {"right": right, "bits_per_byte": bits}


def with_tables(body: LlamaForCausalLM, tables: Tables) -> LlamaForCausalLM:
    """Return the model with other tables, in place."""
    body.resize_token_embeddings(len(tables["input_embeddings"]), mean_resizing=False)
    with torch.no_grad():
        body.get_input_embeddings().weight.copy_(tables["input_embeddings"])
        body.get_output_embeddings().weight.copy_(tables["output_embeddings"])
    return body


def chat_tokenizer(new: Tokenizer, old: Tokenizer) -> Tokenizer:
    """Return the new tokenizer with the old one's chat tokens behind it, as lepmerge numbers them."""
    made = Tokenizer.from_str(new.to_str())
    missing = [token for token in old.get_added_tokens_decoder().values() if made.token_to_id(token.content) is None]
    made.add_special_tokens(missing)
    return made


def study_cell(models: Models, strength: str, measuring: Measuring) -> list[dict[str, Any]]:
    """Return the scores of every way for one width, seed and strength."""
    head = {"width": models.width, "seed": models.seed, "strength": strength}
    place = f"d{models.width}-seed{models.seed}-{strength}"
    instruct = models.instruct(strength)
    body = LlamaForCausalLM.from_pretrained(instruct).eval()
    old = measuring.old_tokenizer
    new = chat_tokenizer(measuring.new_tokenizer, old)
    rows = [{**head, "regime": None, "way": "old vocabulary"}]
    rows[0] |= measuring.kept(f"{place}/old vocabulary", lambda: measuring.scores(body, old, old))
    for regime in REGIMES:
        cell = Cell(models.base, instruct, models.adapted(regime))
        drift = {role: _drift(cell, role) for role in ("input_embeddings", "output_embeddings")}
        screened = (models.width, models.seed, strength, regime) == SCREEN
        ways = core(cell) | (ideas(cell) if screened else {})
        if (models.width, strength) == PROBED:  # old tokens have their old ids in the new vocabulary
            ways |= probes(cell, measuring.answer_tokens)
        for name, tables in ways.items():
            if name == "mean" and regime != "new":  # it knows no adapted model
                continue

            def measure(tables: Callable[[], Tables] = tables) -> dict[str, Any]:
                return measuring.scores(with_tables(body, tables()), new, new)

            entry = {**head, "regime": regime, "way": name, "drift": drift}
            # Where new rows alone were trained, A = E_b for shared tokens, and delta keeps their rows anyway.
            measured = "delta" if (regime, name) == ("new", "delta + kept") else name
            rows.append(entry | measuring.kept(f"{place}/{regime} {measured}", measure))
    return rows


def calibrated_cell(
    models: Models,
    strength: str,
    measuring: Measuring,
    *,
    regimes: Sequence[str],
    starts: Sequence[str],
    kinds: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the scores of the old vocabulary, of each start of calibration, and of each calibrated model."""
    head = {"width": models.width, "seed": models.seed, "strength": strength}
    place = f"d{models.width}-seed{models.seed}-{strength}"
    body = LlamaForCausalLM.from_pretrained(models.instruct(strength)).eval()
    old = measuring.old_tokenizer
    new = chat_tokenizer(measuring.new_tokenizer, old)
    rows = [{**head, "regime": None, "way": "old vocabulary"}]
    rows[0] |= measuring.kept(f"{place}/old vocabulary", lambda: measuring.scores(body, old, old))
    for regime in regimes:
        for start in starts:
            if start == "mean" and regime != "new":  # it knows no adapted model
                continue
            folders: dict[str, Path] = {}
            for kind in kinds:
                folders[start], folders[f"{start}, {kind}"] = calibration(models, strength, regime, start, kind)
            for way, folder in folders.items():

                def measure(folder: Path = folder) -> dict[str, Any]:
                    model = open_model(folder)
                    if len(model.tensors) > len(model.tables):  # a whole model
                        return measuring.scores(LlamaForCausalLM.from_pretrained(folder).eval(), new, new)
                    tables = {role: model.table(role).rows() for role in model.tables}
                    return measuring.scores(with_tables(body, tables), new, new)

                rows.append({**head, "regime": regime, "way": way} | measuring.kept(f"{place}/{regime} {way}", measure))
    return rows


def _drift(cell: Cell, role: str) -> float:
    """Return ‖E_i - E_b‖ / ‖E_b‖ over the rows that both have."""
    base = cell.base.table(role).rows().double()
    moved = cell.instruct.table(role).rows(0, len(base)).double() - base
    return float(moved.norm() / base.norm())


def shown(scores: dict[str, Any]) -> str:
    right = ", ".join(f"{task} {flags.count('1') / len(flags):.3f}" for task, flags in scores["right"].items())
    return f"{right}; " + ", ".join(f"{name} {bits:.3f}" for name, bits in scores["bits_per_byte"].items())


def with_earlier(rows: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Return the rows and those of a results file that were not measured again: calibration is measured in parts."""
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    names = ("width", "seed", "strength", "regime", "way")
    found = {tuple(str(row[name]) for name in names): row for row in (*earlier, *rows)}
    return [found[key] for key in sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/lepmerge/quickstart")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--strengths", nargs="+", choices=STRENGTHS, default=list(STRENGTHS))
    parser.add_argument("--calibrated", action="store_true", help="measure calibrated models instead of the methods")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES, help="of --calibrated")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS), help="of --calibrated")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of --calibrated")
    parser.add_argument("--output", metavar="NAME", help="of the file in benchmarks/results: methods or calibrated")
    arguments = parser.parse_args()
    chosen = [
        (width, seed, strength)
        for width, seed, strength in CELLS
        if width in arguments.widths and seed in arguments.seeds and strength in arguments.strengths
    ]
    if chosen != CELLS and arguments.output is None and not arguments.calibrated:
        parser.error("a part of the study needs --output NAME")
    study: Callable[[Models, str, Measuring], list[dict[str, Any]]] = study_cell
    if arguments.calibrated:
        study = partial(
            calibrated_cell,
            regimes=arguments.regimes,
            starts=arguments.starts,
            kinds=arguments.kinds,
        )
    torch.set_num_threads(1)  # more give other last bits
    report = Report(arguments.output or ("calibrated" if arguments.calibrated else "methods"))
    texts = Texts(arguments.cache)
    measuring = Measuring(texts, arguments.work / "scores")
    rows = []
    for width, seed, strength in chosen:
        rows += study(Models(arguments.work, texts, width=width, seed=seed), strength, measuring)
    if arguments.calibrated:
        rows = with_earlier(rows, RESULTS / f"{report.name}.json")
    report.write({"prompts": {task: len(found) for task, found in measuring.prompts.items()}, "rows": rows})
