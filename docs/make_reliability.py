"""Writes reliability.md from the results of the campaigns.

python docs/make_reliability.py
"""

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "reliability.md"
CAMPAIGNS = Path(__file__).parent.parent / "tests/campaigns"
HEAD = """# Reliability

Campaigns try to break lepmerge. Each campaign makes numbered cases from a seed, so anyone can repeat a single case. An
interrupted campaign resumes. `make campaigns` runs all campaigns, and `make test-slow` runs a few cases of each.
`docs/make_reliability.py` writes this page from the results in `tests/campaigns/results`.
"""
TITLES = {
    "fuzz": (
        "Fuzz",
        "Inputs of every kind are mutated: safetensors headers, index files, GGUF headers, tokenizer.json, "
        "tokenizer_config.json, config.json, adapter_config.json, recipes, training configurations, chats, "
        "texts, and results of lm_eval. A reader must agree with the reference reader (such as the "
        "safetensors, gguf, tokenizers or transformers package) or refuse the file with one line. Faults are: "
        "any other exception, a case of more than 5 CPU seconds, more memory than 500 MiB, a file that is "
        "opened outside the case's folder.",
    ),
    "kills": (
        "Kills",
        "`run`, `run` with a GGUF output, `train`, distillation, `tokenizer extend`, `tokenizer train`, "
        "`extract` and `generate` are killed with SIGKILL after a random share of their CPU time or right "
        "before a random disk call, up to four times in a row. In one of five cases a disk call fails with "
        "EIO, ENOSPC or EINTR instead. After each kill the target is old, new or absent. Then the same "
        "command completes. Its output is byte for byte that of a run without kills, and no other files remain.",
    ),
    "disk_calls": (
        "Disk calls",
        "Every disk call of every one of these commands that changes something fails once with EIO, once with ENOSPC "
        "and once with EINTR. The command ends well or with one line, the target is new or absent, and the next run "
        "completes with the right bytes. A complete campaign has about 3,450 cases.",
    ),
    "twice": (
        "Two at once",
        "Two processes write one output, an input is retrained in mid-run, a symlink to an input points "
        "elsewhere, the output's folder is read-only, or a folder vanishes. The command gives the right "
        "result or one line, the output is never a mixture, and the next run completes.",
    ),
    "vocabularies": (
        "Vocabularies",
        "Random pairs of tokenizers, families crossed. The conversion T equals a naive reference row by row "
        "(byte-level and SentencePiece BPE), or the old tokens spell the new ones (Unigram, WordPiece). After "
        "`tokenizer extend` old ids are unmoved, every new token is reachable, and random Unicode comes back.",
    ),
    "decoders": (
        "Architectures",
        "Every decoder class that `AutoModelForCausalLM` of the installed transformers knows is built with "
        "small sizes from its default config and goes through lepmerge; transformers loads each result. "
        "*Arithmetic* changes nothing, so the logits must be equal. *Swap* keeps the rows of shared tokens. "
        "*Propagate* must load and compute. *Train* runs two steps.",
    ),
}
"""Campaign → its title and what it does."""


def page() -> str:
    """Return the page."""
    faults = json.loads((CAMPAIGNS / "faults.json").read_text())
    parts = [HEAD]
    for name, (title, text) in TITLES.items():
        parts.append(f"\n## {title}\n\n{text}\n")
        path = CAMPAIGNS / "results" / f"{name}.json"
        parts.append(described(json.loads(path.read_text())) if path.exists() else "\nNo result is recorded yet.\n")
        if faults.get(name):
            parts.append("\n| fault that it found | fix |\n|---|---|\n")
            parts += [f"| {fault} | {fix} |\n" for fault, fix in faults[name]]
    return "".join(parts)


def described(result: dict[str, Any]) -> str:
    """Return command, counts and outcomes of one result."""
    about, name = result["machine"], result["campaign"]
    versions = ", ".join(f"{key} {about[key]}" for key in ("python", "torch", "transformers", "tokenizers"))
    command = f"python tests/campaigns/{name}.py --seed {result['seed']} --count {result['done']}"
    kills = sum(number for outcome, number in result["outcomes"].items() if outcome.endswith(": kills"))
    cases = f"{result['done']:,} cases" + (f" with {kills:,} kills" if kills else "")
    lines = [
        f"\n    {command}\n",
        f"\n{cases}, {sum(result['faults'].values())} faults ({versions}; commit {about['commit']}).\n",
    ]
    if name == "decoders":
        return "".join([*lines, *architectures(result["details"])])
    lines.append("\n| outcome | number |\n|---|---:|\n")
    lines += [f"| {outcome} | {number:,} |\n" for outcome, number in result["outcomes"].items()]
    lines += [
        f"| fault: {' '.join(signature.split())[:120]} | {number:,} |\n"
        for signature, number in result["faults"].items()
    ]
    return "".join(lines)


def architectures(rows: list[list[str]]) -> list[str]:
    """Return the table of architectures, then the reasons of refusals."""
    built = [row for row in rows if len(row) > 3]
    reasons: dict[str, list[str]] = {}
    lines = ["\n| model type | class | open | arithmetic | swap | propagate | train |\n|---|---|---|---|---|---|---|\n"]
    for model_type, class_name, *results in built:
        lines.append(
            f"| {model_type} | {class_name} | {' | '.join(result.partition(':')[0] for result in results)} |\n"
        )
        for reason in dict.fromkeys(shortened(result) for result in results if ":" in result):
            reasons.setdefault(reason, []).append(model_type)
    for model_type, *_ in (row for row in rows if len(row) == 3):
        reasons.setdefault("not built: no small size that was tried computes", []).append(model_type)
    lines.append("\n| why | model types |\n|---|---|\n")
    lines += [f"| {reason} | {', '.join(types)} |\n" for reason, types in sorted(reasons.items())]
    return lines


def shortened(result: str) -> str:
    """Return the reason of a refusal without the names of its model."""
    for words, reason in REASONS.items():
        if words in result:
            return reason
    return result.replace("|", r"\|").replace("<", "&lt;")[:200]


REASONS = {
    "packing: concatenate": "trained with `packing: concatenate`: documents of a block attend to one another",
    "also has one row per token": "refused: another tensor has one row per token (an output bias or a second table)",
    "should have one shape": "refused: the two tables have different shapes",
    "no single tensor of input": "refused: no single table of input embeddings",
    "does not know it": "refused: `train` does not know how the class computes its logits",
}
"""Words of an outcome → the reason in the table."""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
