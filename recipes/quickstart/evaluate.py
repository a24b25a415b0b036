"""Prints how well models do on the quickstart's held-out Russian text and task.

python recipes/quickstart/evaluate.py NAME=FOLDER [NAME=FOLDER ...] [--json FILE]
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).parent
BATCH_SIZE = 64


def split_text(text: str, num_characters: int) -> list[str]:
    """The text cut before spaces into pieces of at most `num_characters` (or one longer word)."""
    pieces = [""]
    for word in text.replace(" ", "\n ").split("\n"):
        if pieces[-1] and len(pieces[-1]) + len(word) > num_characters:
            pieces.append("")
        pieces[-1] += word
    return pieces


@torch.inference_mode()
def measure_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lines: list[str]) -> dict[str, float]:
    """Bits per byte, each piece of a line after <s>, and characters per token.

    The pieces are cut by characters, so that every vocabulary predicts the same bytes from the same context.
    """
    pieces = [piece for line in lines for piece in split_text(line, 240)]
    rows = [[tokenizer.bos_token_id, *ids] for ids in tokenizer(pieces, add_special_tokens=False)["input_ids"]]
    rows.sort(key=len)
    nats = 0.0
    for start in range(0, len(rows), BATCH_SIZE):
        batch = [torch.tensor(row) for row in rows[start : start + BATCH_SIZE]]
        inputs = pad_sequence(batch, batch_first=True)  # a causal model does not see the padding at the right
        targets = pad_sequence(batch, batch_first=True, padding_value=-100)[:, 1:]
        logits = model(input_ids=inputs).logits[:, :-1]
        nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    return {
        "bits_per_byte": nats / math.log(2) / sum(len(piece.encode()) for piece in pieces),
        "characters_per_token": sum(map(len, pieces)) / sum(len(row) - 1 for row in rows),
    }


@torch.inference_mode()
def measure_task(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[dict]) -> float:
    """The share of prompts whose greedy reply is the answer."""
    chats = [example["messages"] for example in examples]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    prompts = [(text, example["answer"]) for text, example in zip(texts, examples, strict=True)]
    prompts.sort(key=lambda prompt: len(prompt[0]))
    tokenizer.padding_side = "left"
    num_right = 0
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        texts = [text for text, _ in batch]
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        outputs = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        replies = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        num_right += sum(reply.strip() == answer for reply, (_, answer) in zip(replies, batch, strict=True))
    return num_right / len(prompts)


def evaluate(folder: str) -> dict[str, float | int | None]:
    """The measurements of one model folder; no task accuracy where it has no chat template."""
    start = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    lines = (HERE / "heldout_ru.txt").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(line) for line in (HERE / "task.jsonl").read_text(encoding="utf-8").splitlines()]
    result = {
        "vocabulary": model.get_input_embeddings().num_embeddings,
        **measure_text(model, tokenizer, lines),
        "task_accuracy": measure_task(model, tokenizer, examples) if tokenizer.chat_template else None,
    }
    return {**result, "seconds": time.perf_counter() - start}


def print_table(models: dict[str, str | Path]) -> dict[str, dict[str, float | int | None]]:
    """Prints a line for each model, name → folder, and returns the measurements."""
    results = {}
    width = max(len("model"), *map(len, models))
    print(f"{'model':{width}}  vocabulary  characters/token  bits/byte  task accuracy  seconds")
    for name, folder in models.items():
        result = results[name] = evaluate(str(folder))
        accuracy = "-" if result["task_accuracy"] is None else f"{result['task_accuracy']:.3f}"
        print(
            f"{name:{width}}  {result['vocabulary']:10d}  {result['characters_per_token']:16.2f}  "
            f"{result['bits_per_byte']:9.3f}  {accuracy:>13}  {result['seconds']:7.1f}",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to a file")
    arguments = parser.parse_args()
    results = print_table(dict(model.split("=", 1) for model in arguments.models))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
