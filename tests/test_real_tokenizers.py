"""T between real vocabularies, checked byte by byte: no chosen old token may stand for other bytes unnoticed.

The SentencePiece and byte-level vocabularies of the package `mistral-common` are used where `make` has put its files.
More run when LEPMERGE_TOKENIZERS names a folder with `<name>/tokenizer.json` (smollm2, llama3, qwen3, gemma3, ...).
"""

import base64
import json
import os
import struct
import sys
import time
from collections import Counter
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest
import reference
from tokenizers import Tokenizer

from lepmerge.vocabulary.conversion import ADDED, DECOMPOSED, EXACT, INEXACT, NONE, Conversion, build_conversion
from lepmerge.vocabulary.vocabulary import Vocabulary

MISTRAL = ("mistral_v1", "mistral_v3", "tekken")
FOLDER = os.environ.get("LEPMERGE_TOKENIZERS")
OPTIONAL = sorted(path.parent.name for path in Path(FOLDER).glob("*/tokenizer.json")) if FOLDER else []
SYMBOLS_THAT_SMOLLM2_LACKS = 21


def protobuf_fields(data: bytes):
    """Yield (number, value) of a protobuf message: ints, floats and bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 5:
            yield key >> 3, struct.unpack_from("<f", data, place)[0]
            place += 4
        else:
            assert key & 7 == 2
            length = varint()
            yield key >> 3, data[place : place + length]
            place += length


def from_sentencepiece(data: bytes) -> dict:
    """Return the tokenizer.json of a SentencePiece BPE model as transformers converts Llama-2's."""
    pieces = []
    for number, value in protobuf_fields(data):
        if number == 1:
            fields = {1: b"", 2: 0.0, 3: 1, **dict(protobuf_fields(value))}
            pieces.append((fields[1].decode(), fields[2], fields[3]))  # piece, score, type
    vocab = {piece: id for id, (piece, _, _) in enumerate(pieces)}
    merges = []
    for piece, score, kind in pieces:
        if kind == 1:
            splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
            merges += [(-score, vocab[a], vocab[b], [a, b]) for a, b in splits if a in vocab and b in vocab]
    special = [(piece, id) for id, (piece, _, kind) in enumerate(pieces) if kind in (2, 3)]
    return tokenizer_json(
        {"type": "BPE", "vocab": vocab, "merges": [pair for *_, pair in sorted(merges)], "unk_token": "<unk>"}
        | {"byte_fallback": True, "fuse_unk": True},
        special,
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
    )


def from_tekken(data: bytes) -> dict:
    """Return the tokenizer.json of a tekken file: token ids are ranks, merges follow from them (ignore_merges)."""
    described = json.loads(data)
    config = described["config"]
    num_special = config["default_num_special_tokens"]
    num_ordinary = config["default_vocab_size"] - num_special
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in described["vocab"][:num_ordinary]]
    ids = {token: num_special + rank for rank, token in enumerate(tokens)}
    merges = []
    for token, id in ids.items():
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        cuts = [pair for pair in cuts if pair[0] in ids and pair[1] in ids]
        merges += [(id, ids[a], ids[b], [written(a), written(b)]) for a, b in cuts]
    vocab = {f"<SPECIAL_{id}>": id for id in range(num_special)} | {written(token): id for token, id in ids.items()}
    model = {"type": "BPE", "vocab": vocab, "merges": [pair for *_, pair in sorted(merges)], "ignore_merges": True}
    pre_tokenizer = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": config["pattern"]}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    special = [(f"<SPECIAL_{id}>", id) for id in range(num_special)]
    return tokenizer_json(model, special, pre_tokenizer=pre_tokenizer)


def written(token: bytes) -> str:
    return "".join(reference.CHARACTER_OF[byte] for byte in token)


def tokenizer_json(model: dict, special: list[tuple[str, int]], **parts: object) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": id, "content": content, **flags} for content, id in special]
    spec = {"version": "1.0", "added_tokens": added, **parts, "model": model}
    Tokenizer.from_str(json.dumps(spec))  # the library takes it
    return spec


@cache
def vocabulary(name: str) -> Vocabulary:
    if name not in MISTRAL:
        return Vocabulary.in_folder(Path(FOLDER or "") / name)
    data = Path(sys.prefix) / "tokenizers" / "mistral_common" / "data"
    if not data.exists():
        pytest.skip(
            f"pip install --no-deps --target {sys.prefix}/tokenizers mistral-common: its files only, not its code"
        )
    if name == "tekken":
        return Vocabulary(from_tekken((data / "tekken_240718.json").read_bytes()))
    file = {"mistral_v1": "tokenizer.model.v1", "mistral_v3": "mistral_instruct_tokenizer_240323.model.v3"}[name]
    return Vocabulary(from_sentencepiece((data / file).read_bytes()))


@cache
def bytes_by_id(name: str) -> dict[int, bytes]:
    """Return id → bytes of the tokens that text falls into, found by this file's own rules: all but special ones."""
    spec = vocabulary(name).spec
    parts = json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
    special = {entry["id"] for entry in spec["added_tokens"] if entry["special"]}
    found = {}
    for token, id in spec["model"]["vocab"].items():
        if id in special:
            continue
        if "ByteLevel" in parts:
            found[id] = bytes(reference.BYTE_OF[character] for character in token)
        elif token.startswith("<0x") and token.endswith(">") and len(token) == 6:
            found[id] = bytes([int(token[3:5], 16)])
        else:
            found[id] = token.replace("▁", " ").encode()
    return found


def sources(conversion: Conversion) -> list[list[int]]:
    starts = conversion.start_V1.tolist()
    old = conversion.old_N.tolist()
    return [old[a:b] for a, b in zip(starts, starts[1:], strict=False)]


def check(old: str, new: str) -> Counter:
    """Assert that every row of T is right or reported; return the number of ordinary rows of each kind."""
    conversion = build_conversion(vocabulary(old), vocabulary(new), num_old_rows=vocabulary(old).size)
    old_bytes, new_bytes = bytes_by_id(old), bytes_by_id(new)
    in_old = set(old_bytes.values())
    alone = {  # added tokens that the model does not know: they stand for their content
        entry["id"]: entry["content"].encode()
        for entry in vocabulary(old).spec["added_tokens"]
        if not entry["special"] and entry["id"] not in old_bytes
    }
    added = {entry["id"] for entry in vocabulary(new).spec["added_tokens"]}
    kinds = conversion.kind_V.tolist()
    for id, ids in enumerate(sources(conversion)):
        data = new_bytes.get(id)
        if data is None:
            assert kinds[id] in (ADDED, NONE)
            continue
        spelled = b"".join(alone.get(old_id) or old_bytes[old_id] for old_id in ids)
        if id in added:
            assert kinds[id] == ADDED and spelled == data or kinds[id] == NONE, (id, data, ids)
        elif kinds[id] == EXACT:
            assert len(ids) == 1 and spelled == data, (id, data, ids)
        elif kinds[id] == DECOMPOSED:
            assert len(ids) > 1 and spelled == data and data not in in_old, (id, data, ids)
        elif kinds[id] == INEXACT:
            assert ids and spelled != data and data not in in_old, (id, data, ids)
        else:
            assert kinds[id] == NONE and not ids and data not in in_old, (id, data, ids)
    return Counter(kinds[id] for id in new_bytes if id not in added)


@pytest.mark.parametrize(("old", "new"), list(permutations(MISTRAL, 2)))
def test_vocabularies_of_mistral(old: str, new: str) -> None:
    """All three hold every byte, so that nothing is inexact or without source."""
    counts = check(old, new)
    assert counts[INEXACT] == 0 and counts[EXACT] > 10_000
    assert counts[EXACT] + counts[DECOMPOSED] == len(bytes_by_id(new))


def test_byte_tokens_that_equal_ordinary_ones_keep_their_kind() -> None:
    """125 byte-fallback tokens of Mistral have the bytes of an ordinary token; each finds itself."""
    v1, v3 = vocabulary("mistral_v1"), vocabulary("mistral_v3")
    conversion = build_conversion(v1, v3, num_old_rows=v1.size)
    vocab_1, vocab_3 = v1.spec["model"]["vocab"], v3.spec["model"]["vocab"]
    shared = [(token, id) for token, id in vocab_3.items() if token in vocab_1 and id in bytes_by_id("mistral_v3")]
    found = sources(conversion)
    assert all(found[id] == [vocab_1[token]] for token, id in shared)
    repeated = Counter(bytes_by_id("mistral_v1").values())
    assert sum(count == 2 for count in repeated.values()) == 125


@pytest.mark.slow
@pytest.mark.skipif(not OPTIONAL, reason="LEPMERGE_TOKENIZERS names no folder with tokenizers")
@pytest.mark.parametrize(("old", "new"), [pair for pair in permutations([*OPTIONAL, *MISTRAL], 2)])
def test_other_vocabularies(old: str, new: str) -> None:
    if old in MISTRAL and new in MISTRAL:
        pytest.skip("in the test above")
    began = time.process_time()
    counts = check(old, new)
    seconds = time.process_time() - began
    residue = counts[INEXACT] + counts[NONE]
    print(f"{old} -> {new}: {dict(sorted(counts.items()))}, residue {residue}, {seconds:.1f} CPU s")


@pytest.mark.skipif("smollm2" not in OPTIONAL, reason="needs LEPMERGE_TOKENIZERS with smollm2")
def test_smollm2_reports_what_it_cannot_spell() -> None:
    """Its vocabulary lacks 21 byte symbols: tokens with them are inexact or without source, and no other is."""
    smollm2 = bytes_by_id("smollm2")
    spelled = {data[0] for data in smollm2.values() if len(data) == 1}
    missing = set(range(256)) - spelled
    assert len(missing) == SYMBOLS_THAT_SMOLLM2_LACKS
    counts = check("smollm2", "mistral_v3")
    assert counts[INEXACT] + counts[NONE] > 0
    kinds = build_conversion(vocabulary("smollm2"), vocabulary("mistral_v3"), num_old_rows=49152).kind_V.tolist()
    residue = {id for id, kind in enumerate(kinds) if kind in (INEXACT, NONE) and id in bytes_by_id("mistral_v3")}
    hold = {
        id for id, data in bytes_by_id("mistral_v3").items() if missing & set(data) and data not in smollm2.values()
    }
    assert residue and residue <= hold
