"""Shrink a BPE to the tokens that a corpus uses. Followed by `extend`, this is the paper's Optimization.

A token is kept together with the tokens that its merges need, so that every kept token can still occur. Kept tokens
stay in their order and get new ids.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lepmerge.errors import VocabularyError
from lepmerge.tokenization.train import renumbered
from lepmerge.tokenization.words import old_tokens
from lepmerge.vocabulary.vocabulary import Vocabulary


def token_counts(words: Iterable[tuple[str, int]], vocabulary: Vocabulary) -> Counter[int]:
    """Return id → number of uses in the words."""
    counted = list(words)
    found: Counter[int] = Counter()
    for (_, count), ids in zip(counted, old_tokens((word for word, _ in counted), vocabulary), strict=True):
        for id in ids:
            found[id] += count
    return found


def shrunk_spec(
    vocabulary: Vocabulary, counts: Counter[int], *, num_kept: int
) -> tuple[dict[str, Any], dict[int, int]]:
    """Return a tokenizer.json with at most num_kept ordinary tokens, and old id → new id of the kept tokens.

    Tokens are kept in the order of their use, most used first (ties: lower id first), each with the tokens that its
    merges need. Bytes, single characters, numbers, special and added tokens are always kept.

    Raises:
        VocabularyError: the vocabulary is not a BPE, or num_kept is less than the number of tokens always kept.
    """
    model = vocabulary.spec["model"]
    if model["type"] != "BPE":
        raise VocabularyError(f"{vocabulary.folder}: only BPE vocabularies can be shrunk, this one is {model['type']}")
    pairs = [_pair(merge) for merge in model["merges"]]
    rank = {pair: place for place, pair in reversed(list(enumerate(pairs)))}
    joined = {left + right for left, right in pairs}
    kept = {token for token in vocabulary.ordinary if token not in joined or vocabulary.is_byte_token(token)}
    for token, id in vocabulary.ordinary.items():
        if vocabulary.bytes_of[id].strip().isdigit():  # so that numbers are tokenized as before
            kept |= _with_parts(token, rank)
    if num_kept < len(kept):
        raise VocabularyError(
            f"at least {len(kept)} bytes, characters and numbers must stay, {num_kept} were to be kept"
        )
    by_use = sorted(vocabulary.ordinary.items(), key=lambda item: (-counts[item[1]], item[1]))
    for token, _ in by_use:
        needed = _with_parts(token, rank) - kept
        if len(kept) + len(needed) <= num_kept:
            kept |= needed
    in_model = [token for token, id in sorted(vocabulary.model_ids.items(), key=lambda item: item[1])]
    added = {token.content for token in vocabulary.added.values()}
    staying = [token for token in in_model if token in kept or token in added]
    alone = [token.content for token in vocabulary.added.values() if token.content not in vocabulary.model_ids]
    new_id = {token: place for place, token in enumerate([*staying, *alone])}
    merges = [merge for merge, (left, right) in zip(model["merges"], pairs, strict=True)
              if left in kept and right in kept and left + right in kept]  # fmt: skip
    spec = {
        **vocabulary.spec,
        "added_tokens": [{**token.entry, "id": new_id[token.content]} for token in vocabulary.added.values()],
        "model": {**model, "vocab": {token: new_id[token] for token in staying}, "merges": merges},
    }
    spec["added_tokens"].sort(key=lambda entry: entry["id"])
    id_map = {vocabulary.all_ids[token]: id for token, id in new_id.items()}
    return {**spec, "post_processor": renumbered(spec.get("post_processor"), id_map)}, id_map


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _with_parts(token: str, rank: Mapping[tuple[str, str], int]) -> set[str]:
    """Return the token and all intermediate tokens through which BPE builds it from its characters."""
    found = {token}
    parts = list(token)
    while len(parts) > 1:
        place = min(range(len(parts) - 1), key=lambda n: rank.get((parts[n], parts[n + 1]), len(rank)))
        if (parts[place], parts[place + 1]) not in rank:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        found.add(parts[place])
    return found
