"""Train a new tokenizer on a corpus: BPE with the tokenizers library, Unigram with sentencepiece.

The special tokens come from a model. A BPE also takes the model's normalizer and pre-tokenizer.
"""

import io
import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from lepmerge.errors import CorpusError, VocabularyError
from lepmerge.tokenization.words import SENTENCEPIECE_WORDS
from lepmerge.vocabulary.vocabulary import Vocabulary

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}
LONGEST_SENTENCE = 1 << 20


def train_bpe(texts: Iterable[str], *, like: Vocabulary, vocab_size: int) -> dict[str, Any]:
    """Return the tokenizer.json of a BPE with vocab_size tokens, special tokens and bytes included.

    Raises:
        VocabularyError: vocab_size is too small, or the model's tokenizer does not split text into words.
        CorpusError: the corpus has too few different words.
    """
    byte_fallback = like.family == "sentencepiece"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = like.tokenizer.normalizer
    splitters = [like.tokenizer.pre_tokenizer] if like.tokenizer.pre_tokenizer is not None else []
    if byte_fallback:
        splitters.append(pre_tokenizers.Split(Regex(SENTENCEPIECE_WORDS), "isolated"))
    if not splitters:
        raise VocabularyError(
            f"{like.folder}: the tokenizer does not split text into words, so no BPE can be trained like it"
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    first = [token.content for token in like.added.values()] + (BYTE_TOKENS if byte_fallback else [])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if like.family == "byte_level" else []
    if vocab_size <= len(first) + len(alphabet):
        raise VocabularyError(
            f"--vocab-size {vocab_size}: special tokens and bytes alone are {len(first) + len(alphabet)}"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(first), initial_alphabet=alphabet, show_progress=False, max_token_length=32
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = tokenizer.get_vocab()
    tokens = [*first, *sorted(trained.keys() - set(first), key=trained.__getitem__)]
    if len(tokens) < vocab_size:
        raise CorpusError(f"the corpus gives only {len(tokens)} tokens, {vocab_size} were requested: give more text")
    model = {
        **like.spec["model"],
        "type": "BPE",
        "vocab": {token: id for id, token in enumerate(tokens)},
        "merges": json.loads(tokenizer.to_str())["model"]["merges"],
        "byte_fallback": byte_fallback,
    }
    return _like(like, model, first)


def train_unigram(texts: Iterable[str], *, like: Vocabulary, vocab_size: int) -> dict[str, Any]:
    """Return the tokenizer.json of a Unigram with byte fallback and vocab_size tokens.

    It decodes every text exactly, except that U+2581, which means a space in such vocabularies, becomes a space.

    Raises:
        VocabularyError: sentencepiece is not installed, or vocab_size is too small.
        CorpusError: the corpus has too few different words.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise VocabularyError("training a Unigram needs a package: pip install 'lepmerge[unigram]'") from error
    special = [token.content for token in like.added.values()]
    unknown = "<unk>" if "<unk>" in special else None
    special = [content for content in special if content != unknown]
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.splitlines() if line),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocab_size - len(special),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            character_coverage=0.9999,
            max_sentence_length=LONGEST_SENTENCE,
            num_threads=1,  # several threads would make the result depend on the machine
            bos_id=-1,
            eos_id=-1,
            unk_id=0,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().rpartition("] ")[2] or "it gives no reason"
        raise CorpusError(f"sentencepiece cannot make {vocab_size} tokens of this corpus: {reason}") from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [[processor.id_to_piece(id), processor.get_score(id)] for id in range(processor.get_piece_size())]
    return unigram_spec(pieces, like=like)


def unigram_spec(pieces: list[list[Any]], *, like: Vocabulary) -> dict[str, Any]:
    """Return the tokenizer.json of a Unigram with the added tokens of `like`.

    pieces: [token, score], <unk> first.
    """
    special = [content for content in like.added if content != "<unk>"]
    lowest = min(score for _, score in pieces)
    vocab = [pieces[0], *([content, lowest] for content in special), *pieces[1:]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": True}
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    spec = _like(like, model, [pieces[0][0], *special])
    return {**spec, "normalizer": None, "pre_tokenizer": METASPACE,
            "decoder": {"type": "Sequence", "decoders": steps}}  # fmt: skip


def _like(like: Vocabulary, model: dict[str, Any], first: list[str]) -> dict[str, Any]:
    """Return the tokenizer.json of `like` with another model and new ids in its added tokens and post-processor.

    first: the first tokens of the new model, in id order; they include every added token of `like`.
    """
    id_of = {content: first.index(content) for content in like.added}
    added = sorted(
        ({**token.entry, "id": id_of[content]} for content, token in like.added.items()), key=lambda entry: entry["id"]
    )
    id_map = {token.id: id_of[content] for content, token in like.added.items()}
    return {
        **like.spec,
        "added_tokens": added,
        "model": model,
        "post_processor": renumbered(like.spec.get("post_processor"), id_map),
    }


def renumbered(part: Any, id_map: dict[int, int]) -> Any:
    """Return a post-processor with new token ids. Ids occur in lists under `ids` and in the pairs (token, id) of `sep`
    and `cls`."""
    if isinstance(part, dict):
        return {key: _renamed(key, value, id_map) for key, value in part.items()}
    return [renumbered(item, id_map) for item in part] if isinstance(part, list) else part


def _renamed(key: str, value: Any, id_map: dict[int, int]) -> Any:
    if key == "ids":
        return [id_map[id] for id in value]
    return [value[0], id_map[value[1]]] if key in ("sep", "cls") else renumbered(value, id_map)
