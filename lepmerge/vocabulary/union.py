"""The union of two vocabularies: the first one, followed by the tokens of the second one that it lacks.

A BPE reaches a token only through merges. The second vocabulary's merges follow those of the first one, whose ranks
stay. So a text is first split into tokens of the first vocabulary, and the other merges join these. Where they do not
lead to a new token, merges of the parts into which it is split are added.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lepmerge.errors import VocabularyError
from lepmerge.vocabulary.vocabulary import Vocabulary

Pair = tuple[str, str]
SAME = ("normalizer", "pre_tokenizer")
"""Parts of a tokenizer.json that decide what the merges are applied to."""
SAME_IN_MODEL = ("byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")


def united(first: Vocabulary, second: Vocabulary, *, names: Pair) -> tuple[Vocabulary, list[str]]:
    """Return the union, and those of its new tokens that no text contains because no merges lead to them.

    The ids of `first` stay. New ordinary tokens follow in the order of their ids in `second`, then new added tokens.

    Raises:
        VocabularyError: `second` has ordinary tokens that `first` lacks, and the two do not split texts alike.
    """
    new = [token for token, id in sorted(second.ordinary.items(), key=lambda item: item[1])
           if id_in(first, second, token) is None]  # fmt: skip
    if not new:
        return first.with_added_of(second), []
    _check_same_kind(first, second, names, example=new[0])
    merges = [_pair(merge) for merge in second.spec["model"]["merges"]]
    own = {_pair(merge) for merge in first.spec["model"]["merges"]}
    known = {*first.model_ids, *new}
    wanted = {*new}
    added = [pair for pair in merges if "".join(pair) in wanted and pair not in own and known.issuperset(pair)]
    more, lost = _missing_merges(new, [*first.spec["model"]["merges"], *added], wanted)
    return with_tokens(first, new, [*added, *more], first=first.size).with_added_of(second), lost


def id_in(vocabulary: Vocabulary, of: Vocabulary, token: str) -> int | None:
    """Return the id of an ordinary token of another vocabulary, matched by bytes and kind (byte-fallback or ordinary).

    Return None if there is no such token.
    """
    same_string = token if vocabulary.family == of.family else None
    is_byte = of.is_byte_token(token)
    id = vocabulary.id_of_bytes(of.bytes_of[of.ordinary[token]], token=same_string, byte_token=is_byte)
    if id is None or id not in vocabulary.token_of:
        return id
    return id if vocabulary.is_byte_token(vocabulary.token_of[id]) == is_byte else None


def with_tokens(vocabulary: Vocabulary, tokens: Sequence[str], merges: Sequence[Pair], *, first: int) -> Vocabulary:
    """Return a BPE vocabulary with further ordinary tokens, whose ids begin with `first`, and further merges."""
    model = vocabulary.spec["model"]
    vocab = {**model["vocab"], **{token: first + place for place, token in enumerate(tokens)}}
    as_strings = bool(model["merges"]) and isinstance(model["merges"][0], str)
    written = [" ".join(pair) if as_strings else list(pair) for pair in merges]
    spec = {**vocabulary.spec, "model": {**model, "vocab": vocab, "merges": [*model["merges"], *written]}}
    extended = Vocabulary(spec)
    if not extended.unfaithful_ids():
        return extended
    # the library numbers added tokens by count unless the model contains them
    model = {**spec["model"], "vocab": {**vocab, **{token.content: token.id for token in vocabulary.added.values()}}}
    return Vocabulary({**spec, "model": model})


def _check_same_kind(first: Vocabulary, second: Vocabulary, names: Pair, *, example: str) -> None:
    """Raise VocabularyError unless both are BPEs that write bytes and split texts alike."""
    kinds = [(each.spec["model"]["type"], each.family) for each in (first, second)]
    difference = None
    if kinds[0] != kinds[1] or kinds[0][0] != "BPE":
        listed = [f"{name} is a {kind} ({family})" for name, (kind, family) in zip(names, kinds, strict=True)]
        difference = f"{' and '.join(listed)}, and only BPEs of the same kind can be united"
    else:
        specs = [_canonical(each) for each in (first, second)]
        parts = [key for key in SAME if specs[0].get(key) != specs[1].get(key)]
        parts += [f"model.{key}" for key in SAME_IN_MODEL if specs[0]["model"].get(key) != specs[1]["model"].get(key)]
        if parts:
            difference = f"their tokenizer.json differ in {parts[0]}, so the merges of one do not suit the other"
    if difference is not None:
        raise VocabularyError(
            f"{names[1]} has tokens that {names[0]} lacks, such as {example!r}, but the vocabularies cannot be united: "
            f"{difference}. Convert one model first (swap_vocabulary, or propagate_embeddings)"
        )


def _canonical(vocabulary: Vocabulary) -> Mapping[str, Any]:
    """Return the parts of the tokenizer.json that are compared, as the tokenizers library writes them."""
    spec = {**vocabulary.spec, "added_tokens": [], "post_processor": None}
    model = {key: value for key, value in spec["model"].items() if key not in ("vocab", "merges", "unk_token")}
    spec["model"] = {**model, "vocab": {}, "merges": []}
    return json.loads(Vocabulary(spec).tokenizer.to_str())


def _missing_merges(new: Sequence[str], merges: Sequence[Any], wanted: set[str]) -> tuple[list[Pair], list[str]]:
    """Return the merges that new tokens still need, and the tokens for which there are none."""
    ranks: dict[Pair, int] = {}
    for merge in merges:
        ranks.setdefault(_pair(merge), len(ranks))
    more: list[Pair] = []
    lost: list[str] = []
    for token in sorted(new, key=len):
        parts = _split(token, ranks)
        steps = _joining(parts, wanted)
        if steps is None:
            lost.append(token)
            continue
        for pair in steps:
            if pair not in ranks:
                ranks[pair] = len(ranks)
                more.append(pair)
    return more, lost


def _split(token: str, ranks: Mapping[Pair, int]) -> list[str]:
    """Return the parts into which the merges turn the characters of a token."""
    parts = list(token)
    while len(parts) > 1:
        pairs = enumerate(zip(parts, parts[1:], strict=False))
        rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in pairs)
        if rank == len(ranks):
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def _joining(parts: list[str], wanted: set[str]) -> list[Pair] | None:
    """Return merges that join the parts, all of whose results are new tokens; None if there are none."""
    if len(parts) == 1:
        return []
    for place in range(len(parts) - 1):
        pair = (parts[place], parts[place + 1])
        if "".join(pair) in wanted:
            rest = _joining([*parts[:place], "".join(pair), *parts[place + 2 :]], wanted)
            if rest is not None:
                return [pair, *rest]
    return None


def _pair(merge: Any) -> Pair:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
