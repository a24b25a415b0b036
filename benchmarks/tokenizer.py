"""Extend a real vocabulary by 8,000 tokens on 12 MB of text. Compare with bpe-continue and a training from scratch.

python tokenizer.py [--model FOLDER] [--text FILE...]     default: SmolLM2's tokenizer, the quickstart's Russian text

bpe-continue comes from PyPI: pip install bpe-continue. With --small it may be missing. The time is also measured on
25, 50 and 100 MB. A text that is too short is repeated with a tenth of its words changed, so that the number of
distinct words grows as in real text.
"""

import argparse
import importlib.util
import random
import re
import tempfile
from pathlib import Path

from inputs import russian, smollm2
from measure import Report, aim, alternating, arguments_of, lepmerge, measured, medians, script, show_aims, table

NUM_TOKENS = 8000
SIZES = (12, 25, 50, 100)
"""Megabytes of text."""
SMALL_TOKENS, SMALL_SIZES = 100, (1,)


def noisy(text: str, size: int, path: Path) -> Path:
    """Write `size` megabytes: the text, then repeats of it in which a tenth of the words have one letter changed."""
    generator = random.Random(0)
    letters = sorted(set(re.findall(r"[а-яё]", text)))

    def changed(match: re.Match[str]) -> str:
        word = match[0]
        if generator.random() > 0.1:
            return word
        place = generator.randrange(len(word))
        return word[:place] + generator.choice(letters) + word[place + 1 :]

    left = size * 1_000_000
    with path.open("wb") as file:
        part = text
        while left > 0:
            data = part.encode()[:left]
            file.write(data.decode(errors="ignore").encode())
            left -= len(data)
            part = re.sub(r"[а-яё]{4,}", changed, text) if left > 0 else ""
    return path


def main() -> None:
    parser = arguments_of(__doc__, runs=3)
    parser.add_argument("--model", type=Path, help="folder of a tokenizer")
    parser.add_argument("--text", type=Path, nargs="+", help="text files")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        ONE[options.one](options.model, options.text[0], options.tokens)
        return
    has_peer = importlib.util.find_spec("bpe_continue") is not None
    if not has_peer and not options.small:
        raise SystemExit("needs bpe-continue: pip install bpe-continue")
    others = [name for name in ONE if has_peer or name != "bpe-continue"]
    report = Report("tokenizer", options)
    num_tokens, sizes = (SMALL_TOKENS, SMALL_SIZES) if options.small else (NUM_TOKENS, SIZES)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        model = options.model or smollm2(folder, small=options.small)
        text = "\n\n".join(path.read_text(encoding="utf-8") for path in options.text or [russian(folder)])
        corpus = {size: noisy(text, size, folder / f"{size}.txt") for size in sizes}
        number = iter(range(10**6))

        def extend(size: int):
            command = ["tokenizer", "extend", model, corpus[size], "--add", str(num_tokens), "-q"]
            return measured(lepmerge(*command, "-o", folder / f"out-{next(number)}"), label=f"lepmerge, {size} MB")

        def other(name: str):
            arguments = ["--model", model, "--text", corpus[sizes[0]], "--tokens", num_tokens]
            return measured(script("tokenizer.py", "--one", name, *arguments), label=name)

        ways = {"lepmerge": lambda: extend(sizes[0]), **{name: lambda name=name: other(name) for name in others}}
        raw = alternating(ways, runs=options.runs)
        growth = {str(size): extend(size) for size in sizes}
    mid = {name: medians(runs) for name, runs in raw.items()}
    rows = [[name, *(mid[name][key] for key in ("cpu_s", "wall_s", "peak_mib"))] for name in mid]
    rows += [
        [f"lepmerge, {size} MB", *(growth[size][key] for key in ("cpu_s", "wall_s", "peak_mib"))] for size in growth
    ]
    print(table(rows, ["", "CPU s", "wall s", "MiB"]))
    aims = [
        aim(f"CPU seconds for {num_tokens:,} tokens on {sizes[0]} MB", mid["lepmerge"]["cpu_s"], 4),
        aim(f"peak memory on {sizes[0]} MB, MiB", mid["lepmerge"]["peak_mib"], 400),
        aim(f"CPU seconds for {num_tokens:,} tokens on {sizes[-1]} MB", growth[str(sizes[-1])]["cpu_s"], 20),
    ]
    show_aims(aims)
    report.write({"setting": {"tokens": num_tokens}, "medians": mid, "runs": raw, "growth": growth, "aims": aims})


def continued(model: Path, corpus: Path, num_tokens: int) -> None:
    import json

    from bpe_continue import continue_training

    old = model / "tokenizer.json"
    size = len(json.loads(old.read_text())["model"]["vocab"]) + num_tokens
    continue_training(str(old), files=[str(corpus)], vocab_size=size, show_progress=False)


def from_scratch(model: Path, corpus: Path, num_tokens: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Tokenizer.from_file(str(model / "tokenizer.json")).pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=49152 + num_tokens, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(corpus)], trainer)


ONE = {"bpe-continue": continued, "tokenizers, from scratch": from_scratch}


if __name__ == "__main__":
    main()
