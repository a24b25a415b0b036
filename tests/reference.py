"""An independent float64 reference: T token by token, the four methods and swap_vocabulary, written from the design.

It knows byte-level and SentencePiece BPE, uses nothing of lepmerge, and is slow on purpose.
Legend: V new rows, N rows of a fit, D width.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def byte_characters() -> dict[str, int]:
    """Return character → byte of the byte-level alphabet, derived from the output of the tokenizers library."""
    found: dict[str, int] = {}
    text = [chr(code) for code in (*range(0x801), *range(0x1000, 0x10000, 0x1000), *range(0x10000, 0x110000, 0x10000))]
    for character in text:
        written = normalizers.ByteLevel().normalize_str(character)
        found.update(zip(written, character.encode(), strict=True))
    missing = [byte for byte in range(256) if byte not in found.values()]  # those that no UTF-8 text has
    found.update((chr(byte), byte) for byte in missing)
    assert len(found) == len(set(found.values())) == 256
    return found


BYTE_OF = byte_characters()
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


class Tokens:
    """The tokens of a tokenizer.json, given parsed or as a folder."""

    def __init__(self, source: Path | dict) -> None:
        self.spec = source if isinstance(source, dict) else json.loads((source / "tokenizer.json").read_text())
        self.is_byte_level = "ByteLevel" in json.dumps([self.spec["pre_tokenizer"], self.spec["decoder"]])
        self.added = {entry["content"]: entry["id"] for entry in self.spec["added_tokens"]}
        vocab = self.spec["model"]["vocab"]
        self.strings = {id: token for token, id in vocab.items() if id not in self.added.values()}
        self.bytes = {id: self.decoded(token) for id, token in self.strings.items()}
        self.size = max([*vocab.values(), *self.added.values()]) + 1
        self.encoder = Tokenizer.from_str(
            json.dumps({"version": "1.0", "added_tokens": [], "model": self.spec["model"]})
        )
        if self.is_byte_level:
            self.encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        else:
            self.encoder.normalizer = normalizers.Replace(" ", "▁")

    def is_byte_token(self, token: str) -> bool:
        return not self.is_byte_level and len(token) == 6 and token.startswith("<0x") and token.endswith(">")

    def decoded(self, token: str) -> bytes:
        if self.is_byte_level:
            return bytes(BYTE_OF[character] for character in token)
        return bytes([int(token[1:5], 16)]) if self.is_byte_token(token) else token.replace("▁", " ").encode()

    def encoded(self, data: bytes) -> list[int]:
        """Return the ids of the bytes in the middle of a text."""
        try:
            ids = self.encoder.encode(data.decode(), add_special_tokens=False).ids
        except UnicodeDecodeError:
            ids = self.encoded_by_model(data)
        return [id for id in ids if id in self.bytes]

    def encoded_by_model(self, data: bytes) -> list[int]:
        if self.is_byte_level:
            return [token.id for token in self.encoder.model.tokenize("".join(CHARACTER_OF[byte] for byte in data))]
        ids: list[int] = []
        run = ""
        for character in [*data.decode(errors="surrogateescape"), None]:
            if character is not None and not "\udc80" <= character <= "\udcff":
                run += character
                continue
            ids += [token.id for token in self.encoder.model.tokenize(run.replace(" ", "▁"))] if run else []
            run = ""
            if character is not None:
                ids.append(self.spec["model"]["vocab"][f"<0x{ord(character) - 0xDC00:02X}>"])
        return ids


@dataclass
class Row:
    """How one new row is made: kind is exact, decomposed, inexact, added or none."""

    kind: str
    ids: list[int]


@lru_cache(maxsize=64)
def tokens_in(folder: Path) -> Tokens:
    return Tokens(folder)


@lru_cache(maxsize=64)
def conversion(old: Tokens, new: Tokens, num_rows: int) -> list[Row]:
    """Return T row by row."""
    rows = [Row("none", []) for _ in range(num_rows)]
    old_ids: dict[bytes, list[int]] = {}
    for old_id in sorted(old.bytes):
        old_ids.setdefault(old.bytes[old_id], []).append(old_id)
    for id, token in new.strings.items():
        data = new.bytes[id]
        same = old_ids.get(data, [])
        same_string = [i for i in same if old.is_byte_level == new.is_byte_level and old.strings[i] == token]
        same_kind = [i for i in same if old.is_byte_token(old.strings[i]) == new.is_byte_token(token)]
        for candidates in (same_string, same_kind, same):
            if candidates:
                rows[id] = Row("exact", [candidates[0]])
                break
        else:
            ids = old.encoded(data)
            if ids:
                rows[id] = Row("decomposed" if b"".join(old.bytes[i] for i in ids) == data else "inexact", ids)
    for content, id in new.added.items():
        if content in old.added:
            rows[id] = Row("added", [old.added[content]])
        else:
            rows[id] = Row("added", old.encoded(content.encode()))
    return rows


def applied(rows: list[Row], table_VD: torch.Tensor) -> torch.Tensor:
    """Return T E in float64; rows without source are NaN."""
    out = torch.full((len(rows), table_VD.shape[1]), float("nan"), dtype=torch.float64)
    for place, row in enumerate(rows):
        if row.ids:
            out[place] = torch.stack([table_VD[id].double() for id in row.ids]).mean(0)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor in a folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def solved(X_ND: torch.Tensor, Y_ND: torch.Tensor) -> torch.Tensor:
    """Return the P that minimizes ‖X P - Y‖. If there are several, return the one with the smallest ‖P - I‖."""
    fit = torch.linalg.lstsq(X_ND, Y_ND, driver="gelsd")
    if int(fit.rank) == X_ND.shape[1]:
        return fit.solution
    return (
        torch.eye(X_ND.shape[1], dtype=torch.float64) + torch.linalg.lstsq(X_ND, Y_ND - X_ND, driver="gelsd").solution
    )


@dataclass
class Expected:
    """A float64 table, and the rows that must be copies, bit by bit: row → stored row."""

    table_VD: torch.Tensor
    copies: dict[int, torch.Tensor]
    num_fitted: int = 0


def propagated(folders: dict[str, Path], method: str, *, role: str = INPUT, keep_shared_rows: bool = False) -> Expected:
    """Return what propagate_embeddings should give for one table."""
    tokens = {name: tokens_in(folder) for name, folder in folders.items()}
    table = {name: weights(folder)[role] for name, folder in folders.items()}
    adapted_VD = table["adapted"].double()
    T = conversion(tokens["instruct"], tokens["adapted"], len(adapted_VD))
    T_base = conversion(tokens["base"], tokens["adapted"], len(adapted_VD))
    Y_VD, X_VD = applied(T, table["instruct"]), applied(T_base, table["base"])
    fitted: list[int] = []
    if method == "swap":
        result_VD = adapted_VD
    elif method == "delta":
        result_VD = torch.where((Y_VD - X_VD).isfinite(), adapted_VD + (Y_VD - X_VD), adapted_VD)
    else:
        kinds = ("exact",) if method == "overlap" else ("exact", "decomposed", "inexact")
        seen: set[int] = set()
        for id, row in enumerate(T):
            if row.kind in kinds and row == T_base[id] and not (method == "overlap" and row.ids[0] in seen):
                fitted.append(id)
                seen.add(row.ids[0])
        result_VD = adapted_VD @ solved(X_VD[fitted], Y_VD[fitted])

    copies: dict[int, torch.Tensor] = {}
    if keep_shared_rows:
        copies.update({id: table["instruct"][row.ids[0]] for id, row in enumerate(T) if row.kind == "exact"})
    for content, id in tokens["instruct"].added.items():
        if content in tokens["adapted"].added:
            copies[tokens["adapted"].added[content]] = table["instruct"][id]
    place = tokens["adapted"].size
    for content, id in sorted(tokens["instruct"].added.items(), key=lambda item: item[1]):
        if content not in tokens["adapted"].added:
            copies[place] = table["instruct"][id]
            place += 1
    num_rows = max(len(adapted_VD), place)
    result_VD = torch.cat([result_VD, result_VD.new_zeros(num_rows - len(result_VD), result_VD.shape[1])])
    for id, row_D in copies.items():
        result_VD[id] = row_D.double()
    return Expected(result_VD, copies, len(fitted))


def swapped(old_folder: Path, new_folder: Path, *, role: str = INPUT) -> Expected:
    """Return what swap_vocabulary should give for one table; the new vocabulary must hold the old added tokens."""
    old, new, table_VD = tokens_in(old_folder), tokens_in(new_folder), weights(old_folder)[role]
    T = conversion(old, new, new.size)
    result_VD = applied(T, table_VD)
    exact = {row.ids[0] for row in T if row.kind == "exact"}
    mean_D = torch.stack([table_VD[id].double() for id in sorted(exact)]).mean(0)
    result_VD = torch.where(result_VD.isnan(), mean_D, result_VD)
    copies = {id: table_VD[row.ids[0]] for id, row in enumerate(T) if len(row.ids) == 1}
    return Expected(result_VD, copies)


def assert_matches(got: torch.Tensor, expected: Expected) -> None:
    """Assert that copied rows equal the reference bit by bit, and other rows equal the reference rounded once.

    At most 0.1 % of the other entries may differ, by one unit in the last place: an error in float32 can move a value
    across the midpoint between two values of the stored type.
    """
    assert tuple(got.shape) == tuple(expected.table_VD.shape)
    for id, row_D in expected.copies.items():
        assert same_bits(got[id], row_D), f"row {id} is not a copy"
    wanted = expected.table_VD.to(got.dtype)
    different = got != wanted
    digits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}[got.dtype]
    unit = torch.ldexp(torch.ones_like(wanted, dtype=torch.float64), torch.frexp(wanted.double()).exponent - digits)
    unit = torch.maximum(unit, wanted.double().abs().amax(1, keepdim=True) * 2.0**-20)  # sums that cancel
    error = (got.double() - wanted.double()).abs()
    assert bool((error <= unit).all()), f"off by {float((error / unit).max())} units in the last place"
    if got.dtype != torch.float32:
        assert int(different.sum()) <= max(2, got.numel() // 1000), f"{int(different.sum())} of {got.numel()} differ"


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Return whether two tensors are equal as bytes, so that -0.0 differs from 0.0."""
    first_bytes, second_bytes = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (first, second))
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first_bytes, second_bytes)
