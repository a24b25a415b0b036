"""Compare Darumeru in the harness (`lm_eval --model hf`) with a plain transformers loop that does the same scoring.

    python benchmarks/darumeru.py [--model FOLDER] [--data tests/darumeru_data] [--limit 2] [--tasks rcb,use]

Default: SmolLM2-135M and all 17 tasks, about 10 CPU minutes.
Both ways run each task in turn in one process on one CPU thread, in the model's chat template without shots, in batches
of 8, longest first. Counted for each: CPU seconds from texts to scored answers, forward passes of the body, and the
tokens in them with padding. The fewest CPU seconds of all runs count; tasks under 3 s run three times as often. The
prompts come from the tasks; the harness's time includes rendering them. The plain loop forwards every choice question
once, as the authors' llmtf does, and computes the logits of the last token only.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inputs import smollm2
from measure import ROOT, Report, aim, arguments_of, show_aims, table

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(ROOT / "eval"))

BATCH = 8
CHOICES = "parus rcb rwsd ruopenbookqa ruworldtree rucola rummlu mmlu_ru mmlu_en".split()
GENERATION = "multiq use sum_abstractive cp_sent_en cp_sent_ru cp_para_en cp_para_ru".split()
TASKS = [*CHOICES, "sum_extractive", *GENERATION]
SHORT = 3.0
"""CPU seconds; the times of shorter tasks vary more."""


class Counter:
    """Counts the forward passes of a model's body, their rows and their tokens."""

    def __init__(self, model: Any) -> None:
        self.reset()
        model.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def reset(self) -> None:
        self.passes = self.rows = self.tokens = 0

    def _count(self, module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        ids = arguments[0] if arguments else keywords["input_ids"]
        self.passes, self.rows, self.tokens = self.passes + 1, self.rows + len(ids), self.tokens + ids.numel()


def batches(rows: list[list[int]]) -> list[list[int]]:
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def plain_choices(lm: Any, prompts: list[tuple[str, tuple[str, ...]]]) -> list[list[float]]:
    """Return the log-probability of each choice's first own token, after one forward pass per question."""
    import torch

    heads, firsts = [], []
    for context, texts in prompts:
        encoded = [lm.tok_encode(context + text) for text in texts]
        shared = len(os.path.commonprefix(encoded))
        heads.append(encoded[0][:shared])
        firsts.append([ids[shared] for ids in encoded])
    found: list[list[float]] = [[]] * len(heads)
    for batch in batches(heads):
        ids, mask = padded([heads[place] for place in batch])
        with torch.no_grad():
            logits = lm.model(ids, attention_mask=mask, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
        for place, row in zip(batch, logits, strict=True):
            found[place] = row[firsts[place]].tolist()
    return found


def plain_sentences(lm: Any, prompts: list[tuple[str, tuple[str, ...]]]) -> list[list[float]]:
    """Return the log-probability of each sentence's first m tokens, after one forward pass per sentence."""
    import torch

    rows, starts = [], []
    for context, texts in prompts:
        head, encoded = lm.tok_encode(context), [lm.tok_encode(context + text) for text in texts]
        begins = [len(os.path.commonprefix([head, ids])) for ids in encoded]
        most = min(len(ids) - begin for ids, begin in zip(encoded, begins, strict=True))
        rows += [ids[: begin + most] for ids, begin in zip(encoded, begins, strict=True)]
        starts += begins
    sums = [0.0] * len(rows)
    for batch in batches(rows):
        ids, mask = padded([rows[place] for place in batch])
        keep = max(len(rows[place]) - starts[place] for place in batch) + 1
        with torch.no_grad():
            logits = lm.model(ids, attention_mask=mask, logits_to_keep=keep).logits[:, :-1].float().log_softmax(-1)
        scores = logits.gather(2, ids[:, -keep + 1 :, None])[:, :, 0]
        for place, row in zip(batch, scores, strict=True):
            sums[place] = float(row[-(len(rows[place]) - starts[place]) :].sum())
    sums_of = iter(sums)
    return [[next(sums_of) for _ in texts] for _, texts in prompts]


def plain_texts(lm: Any, prompts: list[tuple[str, dict[str, Any]]]) -> list[list[str]]:
    """Return the greedy answers with their ids, as the harness returns them."""
    rows = [lm.tok_encode(context) for context, _ in prompts]
    found: list[list[str]] = [[]] * len(rows)
    for batch in batches(rows):
        ids, mask = padded([rows[place] for place in batch])
        limit = prompts[0][1]["max_gen_toks"]
        pad = lm.tokenizer.pad_token_id
        written = lm.model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=pad)
        for place, row in zip(batch, written[:, ids.shape[1] :].tolist(), strict=True):
            found[place] = [lm.tok_decode(row)]
    return found


def padded(rows: list[list[int]]) -> Any:
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[*[0] * (longest - len(row)), *row] for row in rows])
    return ids, torch.tensor([[*[0] * (longest - len(row)), *[1] * len(row)] for row in rows])


def build(task: Any, lm: Any, limit: int) -> list[Any]:
    task._instances = None
    task.build_all_requests(
        limit=limit, apply_chat_template=True, fewshot_as_multiturn=True, chat_template=lm.apply_chat_template
    )
    return task.instances


def by_document(instances: list[Any], answers: list[Any]) -> list[tuple[dict[str, Any], list[Any]]]:
    found: dict[int, tuple[dict[str, Any], list[Any]]] = {}
    for instance, answer in zip(instances, answers, strict=True):
        found.setdefault(id(instance.doc), (instance.doc, []))[1].append(answer)
    return list(found.values())


def harness(task: Any, lm: Any, limit: int) -> dict[str, float]:
    instances = build(task, lm, limit)
    run = lm.generate_until if task.OUTPUT_TYPE == "generate_until" else lm.loglikelihood
    return scores(task, by_document(instances, run(instances, disable_tqdm=True)))


def plain(name: str, task: Any, lm: Any) -> Callable[[], dict[str, float]]:
    """Return the plain way for the requests that the task has built."""
    instances = task.instances
    if name in GENERATION:
        prompts = [instance.args for instance in instances]
        return lambda: scores(task, by_document(instances, [text for (text,) in plain_texts(lm, prompts)]))
    contexts: dict[tuple[int, str], tuple[str, tuple[str, ...]]] = {
        (id(instance.doc), instance.args[0]): (instance.args[0], instance.args[1].texts) for instance in instances
    }
    way = plain_choices if name in CHOICES else plain_sentences

    def run() -> dict[str, float]:
        answers = [(value, False) for values in way(lm, list(contexts.values())) for value in values]
        return scores(task, by_document(instances, answers))

    return run


def scores(task: Any, answered: list[tuple[dict[str, Any], list[Any]]]) -> dict[str, float]:
    values = [task.process_results(document, answers) for document, answers in answered]
    return {name: function([value[name] for value in values]) for name, function in task.aggregation().items()}


def main() -> None:
    parser = arguments_of(__doc__, runs=3)
    parser.add_argument("--model", type=Path, help="folder of a model")
    parser.add_argument("--data", type=Path, default=ROOT / "tests" / "darumeru_data")
    parser.add_argument("--limit", type=int, default=2, help="documents of each task")
    parser.add_argument("--tasks", default=",".join(TASKS), help="separated by commas (default: all 17)")
    options = parser.parse_args()
    if options.small:
        options.limit, options.tasks = 1, "rcb"
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        compare(options, options.model or smollm2(Path(temporary), small=options.small))


def compare(options: argparse.Namespace, model: Path) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    report = Report("darumeru", options)
    lm = HFLM(pretrained=str(model), device="cpu", batch_size=BATCH, dtype="float32", max_length=4096)
    counter = Counter(lm.model)
    metadata = {"pretrained": str(model), "darumeru_data": str(options.data), "max_length": 4096}
    manager = TaskManager(include_path=str(ROOT / "eval" / "darumeru_tasks"), include_defaults=False, metadata=metadata)
    names = options.tasks.split(",")
    tasks = manager.load([f"darumeru_{name}" for name in names])["tasks"]
    found, rows = {}, []
    for name in names:
        task = tasks[f"darumeru_{name}"]
        build(task, lm, options.limit)
        ways = {"harness": lambda task=task: harness(task, lm, options.limit), "plain": plain(name, task, lm)}
        figures: dict[str, dict[str, Any]] = {}
        rounds = 0
        while rounds < options.runs or (rounds < 3 * options.runs and figures["plain"]["cpu_s"] < SHORT):
            rounds += 1
            for way, run in ways.items():
                counter.reset()
                gc.collect()
                began = time.process_time()
                result = run()
                seconds = time.process_time() - began
                before = figures.get(way, {"cpu_s": seconds})["cpu_s"]
                figures[way] = {
                    "cpu_s": round(min(seconds, before), 3), "passes": counter.passes, "rows": counter.rows,
                    "tokens": counter.tokens, "scores": result,
                }  # fmt: skip
        ours, theirs = figures["harness"], figures["plain"]
        ratio = round(ours["cpu_s"] / theirs["cpu_s"], 3)
        same = all(abs(ours["scores"][key] - value) < 1e-9 for key, value in theirs["scores"].items())
        questions = len({(id(instance.doc), instance.args[0]) for instance in task.instances})
        found[name] = {**figures, "questions": questions, "requests": len(task.instances)}
        found[name] |= {"runs": rounds, "ratio": ratio, "same": same}
        rows.append(
            [name, questions, ours["rows"], theirs["rows"], ours["tokens"], theirs["tokens"], ours["cpu_s"],
             theirs["cpu_s"], ratio, same]
        )  # fmt: skip
        print(json.dumps(rows[-1], ensure_ascii=False), file=sys.stderr, flush=True)
    header = ["task", "questions", "rows", "plain", "tokens", "plain", "CPU s", "plain", "ratio", "same scores"]
    print(table(rows, header))
    per_question = [value["harness"]["rows"] / value["questions"] for name, value in found.items() if name in CHOICES]
    aims = [
        aim("slowest task, CPU seconds of the harness / plain", max(value["ratio"] for value in found.values()), 1.05),
        aim("rows forwarded per choice question", max(per_question, default=0), 1.0),
    ]
    show_aims(aims)
    setting = {"model": model.name, "limit": options.limit, "runs": options.runs, "batch": BATCH}
    report.write({"setting": setting, "tasks": found, "aims": aims})


if __name__ == "__main__":
    main()
