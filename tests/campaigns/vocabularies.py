"""Vocabularies: random pairs of tokenizers, families crossed; T, `tokenizer extend` and round trips.

python tests/campaigns/vocabularies.py --count 200 --record

A case makes two tokenizers of random size from random text, or takes a real one (from the package mistral-common). T of
the pair must equal the naive reference of tests/reference.py, row by row, for byte-level and SentencePiece BPE; for the
other families each old token sequence must spell the new token. Then a BPE is extended: old ids do not move, every new
token is reachable, and random Unicode comes back.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from frame import Campaign, Fault, main

RANGES = ((0x20, 0x7E), (0x410, 0x44F), (0x370, 0x3FF), (0x4E00, 0x4FFF), (0x1F600, 0x1F64F), (0xA0, 0x17F))
FAMILIES = ("byte_level", "sentencepiece", "unigram", "wordpiece")
NAIVE = ("byte_level", "sentencepiece")


def random_text(rng: random.Random, length: int) -> str:
    """Return words of random scripts."""
    words = []
    while length > 0:
        low, high = rng.choice(RANGES)
        size = rng.randrange(1, 9)
        words.append("".join(chr(rng.randint(low, high)) for _ in range(size)))
        length -= size
    return " ".join(words)


def random_tokenizer(family: str, rng: random.Random) -> dict[str, Any]:
    """Return the tokenizer.json of a new tokenizer."""
    import pico

    if family == "real":
        return rng.choice(real_tokenizers())
    common = [*pico.ENGLISH, *pico.RUSSIAN]
    texts = [*rng.sample(common, rng.randrange(1, 7)), *(random_text(rng, 40) for _ in range(rng.randrange(6)))]
    texts += [" ".join(rng.choice(texts).split()[:3]) for _ in range(4)]
    size = {"byte_level": 260, "sentencepiece": 330, "unigram": 60, "wordpiece": 80}[family] + rng.randrange(300)
    extra = rng.sample(["<x>", "<|y|>", "привет", "[Z]"], rng.randrange(3))
    special = ("[UNK]",) if family == "wordpiece" else () if family == "byte_level" else ("<unk>",)
    if family == "unigram":
        size += len(set("".join(texts)))  # the trainer needs every character
    tokenizer = getattr(pico, family)(texts, size, special=(*special, *pico.SPECIAL, *extra))
    return json.loads(tokenizer.to_str())


@lru_cache
def real_tokenizers() -> list[dict[str, Any]]:
    """Return published SentencePiece tokenizers, or a byte-level one where the package is missing."""
    import pico
    import pytest
    from test_real_tokenizers import MISTRAL, vocabulary

    try:
        return [json.loads(vocabulary(name).tokenizer.to_str()) for name in MISTRAL[:2]]
    except pytest.skip.Exception:
        return [json.loads(pico.sentencepiece(pico.RUSSIAN, 500).to_str())]


def check_conversion(old: Any, new: Any, crossed: str) -> str:
    """Compare T with the naive reference, or check that the old tokens spell the new ones."""
    import reference

    from lepmerge.vocabulary.conversion import ADDED, KINDS, NONE, build_conversion

    found = build_conversion(old, new, num_old_rows=old.size, num_rows=new.size)
    starts, ids, kinds = found.start_V1.tolist(), found.old_N.tolist(), found.kind_V.tolist()
    rows = [ids[starts[row] : starts[row + 1]] for row in range(new.size)]
    if all(family in NAIVE for family in crossed.split(" to ")):
        expected = reference.conversion.__wrapped__(reference.Tokens(old.spec), reference.Tokens(new.spec), new.size)
        for id, (row, wanted) in enumerate(zip(rows, expected, strict=True)):
            kind = "none" if kinds[id] == NONE or not row else KINDS[kinds[id]]
            if row != wanted.ids or (wanted.ids and kind != wanted.kind):
                raise Fault(f"{crossed}: row {id} is {kind} {row}, the reference says {wanted.kind} {wanted.ids}")
        return "equals the reference"
    for token, id in new.ordinary.items():
        data = b"".join(old.text_bytes_of.get(old_id, b"") for old_id in rows[id])
        if KINDS[kinds[id]] in ("exact", "decomposed") and data != new.token_bytes(token):
            raise Fault(f"{crossed}: token {token!r} is spelled {data!r}")
        if rows[id] and kinds[id] == ADDED:
            raise Fault(f"{crossed}: ordinary token {token!r} counts as added")
    return "spells"


def check_extended(old: Any, rng: random.Random, folder: Path, texts: list[str]) -> str:
    """Extend a vocabulary with a command, and check the result with the tokenizers library alone."""
    import pico
    from tokenizers import Tokenizer

    (folder / "old").mkdir()
    (folder / "old/tokenizer.json").write_text(json.dumps(old.spec))
    (folder / "text.txt").write_text("\n\n".join(texts * 3))
    count = rng.randrange(1, 30)
    done = pico.command(
        "tokenizer", "extend", folder / "old", folder / "text.txt", "--add", count, "-o", folder / "new", "-q"
    )
    if done.exit_code != 0:
        if not done.stderr.startswith("error: ") or not isinstance(done.exception, SystemExit):
            raise Fault(f"extend: {done.exception!r}")
        return "extend refused"
    before, after = (Tokenizer.from_file(str(folder / name / "tokenizer.json")) for name in ("old", "new"))
    old_ids, new_ids = before.get_vocab(), after.get_vocab()
    moved = [token for token, id in old_ids.items() if new_ids.get(token) != id]
    if moved:
        raise Fault(f"extend moved {moved[:3]}")
    joined = "\n".join(texts)
    used = Counter(after.encode(joined, add_special_tokens=False).ids)
    spec = json.loads((folder / "new/tokenizer.json").read_text())
    bare = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": spec["model"]}))
    for token in new_ids.keys() - old_ids.keys():
        if [each.value for each in bare.model.tokenize(token)] != [token]:
            raise Fault(f"extend: {token!r} cannot be reached")
    if len(before.encode(joined).ids) < used.total():
        raise Fault("extend: texts have more tokens than before")
    text = random_text(rng, 200)
    if before.decode(before.encode(text).ids) == text != after.decode(after.encode(text).ids):
        raise Fault(f"extend: {text[:40]!r} does not come back")
    return "extended"


def case(number: int, rng: random.Random) -> str:
    """Check one pair, and extend the first of it."""
    from lepmerge.vocabulary.vocabulary import Vocabulary

    names = ("real" if number % 20 == 19 else FAMILIES[number % 4], FAMILIES[number // 4 % 4])
    old, new = (Vocabulary(random_tokenizer(name, rng)) for name in names)
    crossed = " to ".join("sentencepiece" if name == "real" else name for name in names)
    state = check_conversion(old, new, crossed)
    if names[0] not in NAIVE:
        return state
    texts = [random_text(rng, 60) for _ in range(5)]
    with tempfile.TemporaryDirectory(prefix="vocabulary-") as folder:
        return f"{state}, {check_extended(old, rng, Path(folder), texts)}"


CAMPAIGN = Campaign("vocabularies", case, limit=60.0, chunk=5)

if __name__ == "__main__":
    sys.exit(main(CAMPAIGN, count=200))
