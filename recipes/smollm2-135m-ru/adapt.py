"""Extends BASE's vocabulary with Cyrillic tokens and trains only their rows of the (tied) embeddings.

OUT gets the embeddings, the config and the tokenizer, but no other weights. It is a small stand-in for
lepmerge's own vocabulary extension and embedding training.
"""

import argparse
import gzip
import io
import json
import math
import random
import re
import subprocess
import tarfile
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, embedding
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "manpages-ru"
START = "<|endoftext|>"


def output_of(*command: str, folder: Path) -> bytes:
    """The standard output of a command that runs in `folder`."""
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} not found: the text is in the Debian package {PACKAGE}") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.decode().split())
        raise SystemExit(f"`{' '.join(command)}` failed (has `apt-get update` run?): {reason}") from None


def russian_paragraphs(cache: Path) -> list[str]:
    """Paragraphs of the Russian manual pages without markup, each once; the package is kept in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob(f"{PACKAGE}_*.deb")):
        output_of("apt-get", "download", PACKAGE, folder=cache)
    package = max(cache.glob(f"{PACKAGE}_*.deb"))
    contents = output_of("dpkg-deb", "--fsys-tarfile", package.name, folder=cache)
    with tarfile.open(fileobj=io.BytesIO(contents)) as archive:
        names = sorted(member.name for member in archive if member.isfile() and "/man/ru/" in member.name)
        pages = [gzip.decompress(archive.extractfile(name).read()).decode("utf-8") for name in names]
    paragraphs = []
    for block in re.split(r"^[.'].*\n", "\n".join(pages), flags=re.MULTILINE):
        paragraph = " ".join(re.sub(r"\\f.|\\&", "", block).replace("\\-", "-").split())
        if len(re.findall("[а-яё]", paragraph)) > max(100, len(paragraph) / 2) and "\\" not in paragraph:
            paragraphs.append(paragraph)
    return list(dict.fromkeys(paragraphs))


def merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """`pieces` with each neighbouring `pair` joined, from the left."""
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def new_merges(tokenizer, text: str, num_tokens: int) -> list[tuple[str, str]]:
    """Merges that continue BPE on the Cyrillic words of `text`, the most frequent pair first."""
    counts = Counter(re.findall(" ?[А-Яа-яЁё]+", text))
    words = [(count, tokenizer.tokenize(word)) for word, count in counts.items() if count > 1]
    known = set(tokenizer.get_vocab())
    pair_counts: Counter[tuple[str, str]] = Counter()
    places = defaultdict(set)
    for place, (count, pieces) in enumerate(words):
        for pair in pairwise(pieces):
            pair_counts[pair] += count
            places[pair].add(place)
    merges = []
    for _ in range(num_tokens):
        candidates = ((count, pair) for pair, count in pair_counts.items() if "".join(pair) not in known)
        best = max(candidates)[1]
        merges.append(best)
        known.add("".join(best))
        for place in places.pop(best):
            count, pieces = words[place]
            for pair in pairwise(pieces):
                pair_counts[pair] -= count
            words[place] = count, merged(pieces, best)
            for pair in pairwise(words[place][1]):
                pair_counts[pair] += count
                places[pair].add(place)
    return merges


def save_extended_tokenizer(tokenizer, merges: list[tuple[str, str]], out: Path) -> None:
    """Writes `tokenizer` with a token appended for each of `merges`."""
    tokenizer.save_pretrained(out)
    path = out / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"].update({"".join(pair): len(tokenizer) + i for i, pair in enumerate(merges)})
    content["model"]["merges"].extend(merges)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def mean_rows(tokenizer, merges: list[tuple[str, str]], table: torch.Tensor) -> torch.Tensor:
    """For each new token the mean of the rows of the old tokens that its merges join."""
    old_ids = {token: [id] for token, id in tokenizer.get_vocab().items()}
    for left, right in merges:
        old_ids[left + right] = old_ids[left] + old_ids[right]
    return torch.stack([table[old_ids[left + right]].mean(dim=0) for left, right in merges])


def next_token_loss(body, table: torch.Tensor, ids: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross entropy of each next token, with `table` as input and output embeddings of `body`."""
    hidden = body(inputs_embeds=embedding(ids[:, :-1], table), use_cache=False).last_hidden_state
    return cross_entropy((hidden @ table.T).flatten(0, 1), ids[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def bits_per_character(body, table: torch.Tensor, tokenizer, paragraphs: list[str]) -> float:
    """Comparable between vocabularies, unlike a loss per token."""
    rows = [tokenizer(START + text, return_tensors="pt").input_ids for text in paragraphs]
    nats = sum(next_token_loss(body, table, ids, reduction="sum").item() for ids in rows)
    return nats / math.log(2) / sum(map(len, paragraphs))


def train_new_rows(body, old_rows, new_rows: torch.Tensor, batches: list[torch.Tensor]) -> None:
    """Trains `new_rows` in place, a step a batch (rows of ids); `body` and `old_rows` stay frozen."""
    optimizer = torch.optim.AdamW([new_rows], lr=2e-3, weight_decay=0.0)
    for step, batch in enumerate(batches):
        loss = next_token_loss(body, torch.cat([old_rows, new_rows]), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == len(batches) - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def adapt(base: Path, out: Path, cache: Path, *, num_tokens: int, num_steps: int) -> None:
    """Writes the adapted embeddings, config and tokenizer to `out`."""
    paragraphs = russian_paragraphs(cache)
    random.Random(0).shuffle(paragraphs)
    held_out, text = paragraphs[:10], START.join(paragraphs[10:])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    body, old_rows = model.model, model.get_input_embeddings().weight
    old_tokenizer = AutoTokenizer.from_pretrained(base)

    merges = new_merges(old_tokenizer, text, num_tokens)
    save_extended_tokenizer(old_tokenizer, merges, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    new_rows = mean_rows(old_tokenizer, merges, old_rows).requires_grad_()
    ids = tokenizer.backend_tokenizer.encode(text).ids[: num_steps * 4 * 128]

    def report(when: str, table: torch.Tensor, tokenizer) -> None:
        bits = bits_per_character(body, table, tokenizer, held_out)
        print(f"bits per held-out character, {when}: {bits:.3f}", flush=True)

    report("old vocabulary", old_rows, old_tokenizer)
    report("new vocabulary, mean rows", torch.cat([old_rows, new_rows]), tokenizer)
    train_new_rows(body, old_rows, new_rows, list(torch.tensor(ids).view(num_steps, 4, 128)))
    table = torch.cat([old_rows, new_rows]).detach()
    report("new vocabulary, trained rows", table, tokenizer)

    model.config.vocab_size = len(table)
    model.config.save_pretrained(out)
    tensors = {"model.embed_tokens.weight": table.to(torch.bfloat16)}
    save_file(tensors, out / "embeddings.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "work/cache", metavar="FOLDER")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=24)
    arguments = parser.parse_args()
    counts = {"num_tokens": arguments.tokens, "num_steps": arguments.steps}
    adapt(arguments.base, arguments.out, arguments.cache, **counts)


if __name__ == "__main__":
    main()
