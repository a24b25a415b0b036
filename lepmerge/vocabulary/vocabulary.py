"""A vocabulary: which bytes each token of a tokenizer.json represents, and how it tokenizes other bytes.

There are four families of token strings:
    byte_level     every byte is one character of GPT-2's alphabet (space → Ġ)
    sentencepiece  UTF-8 with ▁ for the space; <0xNN> is one byte when byte fallback is on
    wordpiece      ##x continues a word with x; any other token x means " x"
    plain          unchanged UTF-8
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lepmerge.errors import VocabularyError
from lepmerge.vocabulary.autotokenizer import FolderTokenizer, read_tokenizer
from lepmerge.vocabulary.library import library_tokenizer
from lepmerge.vocabulary.token_bytes import BYTE_TOKENS, CHARACTER_OF, TO_LATIN_1, AddedToken, valid_parts
from lepmerge.vocabulary.tokenizer_json import check_post_processor, family_of, of_the_middle, without_tokens_beyond

NO_TOKENS = {"type": "BPE", "vocab": {}, "merges": []}
BYTES_PER_TOKEN = 1200
"""Resident memory per token: the parsed file, the byte tables and the library's copy (measured: 1.1 kB)."""


class Vocabulary:
    """The vocabulary of a tokenizer.json, which is given as a parsed `spec` or read from `folder` on first use."""

    def __init__(
        self, spec: dict[str, Any] | None = None, *, folder: Path | None = None, num_rows: int | None = None
    ) -> None:
        self.folder, self.num_rows = folder, num_rows
        if spec is not None:
            self.spec = spec

    @classmethod
    def in_folder(cls, folder: Path, *, num_rows: int | None = None) -> "Vocabulary":
        """Return the vocabulary of a model or tokenizer folder. The folder is read on first use.

        num_rows: rows of the model's tables. Added tokens beyond them are left out: the model cannot compute them.
        """
        return cls(folder=folder, num_rows=num_rows)

    @cached_property
    def loaded(self) -> FolderTokenizer:
        """The folder's tokenizer as AutoTokenizer loads it. Raises the errors of `read_tokenizer`."""
        assert self.folder is not None
        return read_tokenizer(self.folder)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The parsed tokenizer.json.

        Raises:
            VocabularyError: it cannot be read, or texts can contain tokens that the model has no rows for.
        """
        spec = self.loaded.spec
        if self.num_rows is not None:
            spec = without_tokens_beyond(spec, self.num_rows, where=str(self.folder))
        check_post_processor(spec, where=str(self.folder))
        return spec

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on how the folder was read; empty until it is read."""
        if "loaded" not in vars(self):
            return ()
        beyond = len(self.loaded.spec.get("added_tokens") or []) - len(self.added)
        left_out = f"{self.folder}: {beyond} added tokens beyond the {self.num_rows} rows of the tables are left out"
        return (*self.loaded.notes, left_out) if beyond else self.loaded.notes

    @property
    def names(self) -> Mapping[str, Any]:
        """The special tokens that the folder names, such as bos_token → "<s>"."""
        return {} if self.folder is None else self.loaded.names

    @cached_property
    def family(self) -> str:
        return family_of(self.spec)

    @cached_property
    def added(self) -> dict[str, AddedToken]:
        """Content → token, for special and added tokens."""
        found = {}
        for entry in sorted(self.spec.get("added_tokens") or [], key=lambda entry: entry["id"]):
            content, special = entry["content"], bool(entry.get("special"))
            of_model = not special and content in self.model_ids  # such as Gemma's ▁▁, which means two spaces
            data = self.token_bytes(content) if of_model else content.encode()
            found[content] = AddedToken(int(entry["id"]), content, special, entry, data)
        return found

    @cached_property
    def model_ids(self) -> dict[str, int]:
        """Token string → id in the tokenizer's model. Added tokens are included only if the model contains them too."""
        vocab = self.spec["model"]["vocab"]
        if isinstance(vocab, dict):
            return vocab
        return {token: id for id, (token, _) in enumerate(vocab)}

    @cached_property
    def ordinary(self) -> dict[str, int]:
        """Token string → id of the tokens that are not added tokens."""
        added_ids = {token.id for token in self.added.values()}
        return {token: id for token, id in self.model_ids.items() if id not in added_ids}

    @cached_property
    def all_ids(self) -> dict[str, int]:
        return {**self.model_ids, **{content: token.id for content, token in self.added.items()}}

    @cached_property
    def size(self) -> int:
        """The highest id plus one: the fewest rows that a table for this vocabulary can have."""
        return max(self.all_ids.values(), default=-1) + 1

    @property
    def num_bytes(self) -> int:
        """Approximate memory in bytes; 0 until the vocabulary is read."""
        return BYTES_PER_TOKEN * self.size if "spec" in vars(self) else 0

    @cached_property
    def byte_fallback(self) -> bool:
        return bool(self.spec["model"].get("byte_fallback"))

    def is_byte_token(self, token: str) -> bool:
        """Return whether the token string is a byte-fallback token such as <0x0A>."""
        return self.byte_fallback and token in BYTE_TOKENS

    def token_bytes(self, token: str) -> bytes:
        """Return the bytes that an ordinary token represents."""
        if self.family == "byte_level":
            try:
                return token.translate(TO_LATIN_1).encode("latin-1")
            except UnicodeEncodeError:  # with characters outside the alphabet, decoders treat the token as text
                return token.encode("utf-8", "surrogatepass")
        if self.family == "wordpiece":
            prefix = self.spec["model"]["continuing_subword_prefix"]
            return (token[len(prefix) :] if token.startswith(prefix) else f" {token}").encode()
        if self.family == "sentencepiece":
            if self.is_byte_token(token):
                return bytes((BYTE_TOKENS[token],))
            return token.replace("▁", " ").encode("utf-8", "surrogatepass")
        return token.encode("utf-8", "surrogatepass")

    @cached_property
    def bytes_of(self) -> dict[int, bytes]:
        """Id → bytes of the ordinary tokens, in id order."""
        return {id: self.token_bytes(token) for token, id in sorted(self.ordinary.items(), key=lambda item: item[1])}

    @cached_property
    def ids_by_bytes(self) -> dict[bytes, tuple[int, ...]]:
        """Bytes → ids of all ordinary tokens with these bytes (there may be several), lowest id first."""
        found: dict[bytes, tuple[int, ...]] = {}
        for id, data in self.bytes_of.items():
            found[data] = (*found[data], id) if data in found else (id,)
        return found

    @cached_property
    def token_of(self) -> dict[int, str]:
        """Id → token string of the ordinary tokens."""
        return {id: token for token, id in self.ordinary.items()}

    @cached_property
    def plain_tokens(self) -> dict[bytes, int]:
        """Bytes → id of the added tokens that are not special, for example runs of spaces."""
        return {token.data: token.id for token in self.added.values() if not token.special}

    @cached_property
    def text_bytes_of(self) -> dict[int, bytes]:
        """Id → bytes of the tokens that the model produces from text: ordinary ones, and its added ones not special."""
        plain = (token for token in self.added.values() if not token.special and token.content in self.model_ids)
        return {**self.bytes_of, **{token.id: token.data for token in plain}}

    def id_of_added(self, token: AddedToken) -> int | None:
        """Return this vocabulary's id of another's added token, matched by content or, if not special, by bytes."""
        if token.content in self.all_ids:
            return self.all_ids[token.content]
        return None if token.special else self.id_of_bytes(token.data)

    def id_of_bytes(self, data: bytes, *, token: str | None = None, byte_token: bool = False) -> int | None:
        """Return the id of a token with these bytes. Prefer the same string, then the same kind, then the lowest id."""
        candidates = self.ids_by_bytes.get(data)
        if not candidates:
            return self.plain_tokens.get(data)
        if len(candidates) == 1:
            return candidates[0]

        def preference(id: int) -> tuple[bool, bool, int]:
            return self.token_of[id] != token, self.is_byte_token(self.token_of[id]) != byte_token, id

        return min(candidates, key=preference)

    def ids_in(self, other: "Vocabulary") -> dict[int, int]:
        """Return id → id in `other` for the shared tokens. Added tokens match by content, ordinary ones by bytes."""
        ids: dict[int, int | None] = {token.id: other.id_of_added(token) for token in self.added.values()}
        for token, id in self.ordinary.items():
            same_string = token if self.family == other.family else None
            ids[id] = other.id_of_bytes(self.bytes_of[id], token=same_string, byte_token=self.is_byte_token(token))
        return {id: new_id for id, new_id in ids.items() if new_id is not None}

    def with_added_of(self, other: "Vocabulary") -> "Vocabulary":
        """Return this vocabulary with the added tokens of `other` that it lacks, in the order of their ids in `other`.

        New tokens get the ids after the highest one. A special token that is an ordinary token here keeps its id.

        Raises:
            VocabularyError: the tokenizers library cannot give a token the intended id.
        """
        entries = []
        num_new = 0
        for token in other.added.values():
            known = self.id_of_added(token)
            if token.content in self.added or (known is not None and not token.special):
                continue
            entries.append({**token.entry, "id": self.size + num_new if known is None else known})
            num_new += known is None
        return self._with_entries(entries) if entries else self

    def _with_entries(self, entries: list[dict[str, Any]]) -> "Vocabulary":
        spec = {**self.spec, "added_tokens": [*(self.spec.get("added_tokens") or []), *entries]}
        extended = Vocabulary(spec)
        if extended.unfaithful_ids():  # the library numbers added tokens by count, which is wrong if ids have holes
            vocab = self.spec["model"]["vocab"]
            if not isinstance(vocab, dict):
                raise VocabularyError(
                    f"cannot add {entries[0]['content']!r} to a Unigram vocabulary with holes in its ids"
                )
            spec["model"] = {**self.spec["model"], "vocab": {**vocab, **{e["content"]: e["id"] for e in entries}}}
            extended = Vocabulary(spec)
            if unfaithful := extended.unfaithful_ids():
                content, (wanted, given) = next(iter(unfaithful.items()))
                raise VocabularyError(f"the tokenizers library gives {content!r} the id {given} instead of {wanted}")
        return extended

    def unfaithful_ids(self) -> dict[str, tuple[int, int | None]]:
        """Return content → (id in the file, id in the tokenizers library) for the added tokens whose two ids differ."""
        given = {content: self.tokenizer.token_to_id(content) for content in self.added}
        return {content: (self.added[content].id, id) for content, id in given.items() if id != self.added[content].id}

    @property
    def _where(self) -> Path | str:
        return self.folder or "the tokenizer"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return library_tokenizer(self.spec, self._where)

    def encode(self, data: Iterable[bytes]) -> list[list[int]]:
        """Tokenize each byte string as the middle of a text: no prefix space, no special or added tokens.

        A normalizer may change the bytes; then the ids come from the bare model instead. Bytes that the vocabulary
        cannot express are left out, so a list of ids may be empty or cover only a part of the bytes.
        """
        data = list(data)
        encoded: list[list[int]] = [[] for _ in data]
        texts: dict[int, str] = {}
        for place, item in enumerate(data):
            try:
                texts[place] = item.decode()
            except UnicodeDecodeError:
                continue
        for place, encoding in zip(texts, self._middle.encode_batch_fast([*texts.values()]), strict=True):
            encoded[place] = [id for id in encoding.ids if id in self.text_bytes_of]
        for place, item in enumerate(data):
            if not self.spells(encoded[place], item):
                bare = self._encode_bare(item)
                if self.spells(bare, item) or not encoded[place]:
                    encoded[place] = bare
        return encoded

    def spells(self, ids: Sequence[int], data: bytes) -> bool:
        return b"".join(map(self.text_bytes_of.__getitem__, ids)) == data

    @cached_property
    def _middle(self) -> Tokenizer:
        """The tokenizer for the middle of a text."""
        middle = library_tokenizer(of_the_middle({**self.spec, "model": NO_TOKENS}), self._where)
        middle.model = self.tokenizer.model  # shared, because reading it from JSON again takes long
        return middle

    def _encode_bare(self, data: bytes) -> list[int]:
        if self.family == "byte_level":
            return self._tokenize("".join(map(CHARACTER_OF.__getitem__, data)))
        ids: list[int] = []
        for text, undecodable in valid_parts(data):
            if text:
                ids += self._tokenize(text.replace(" ", "▁") if self.family == "sentencepiece" else text)
            ids += [self.ordinary[token] for byte in undecodable if (token := f"<0x{byte:02X}>") in self.ordinary]
        return ids

    def _tokenize(self, text: str) -> list[int]:
        return [token.id for token in self._middle.model.tokenize(text) if token.id in self.text_bytes_of]
