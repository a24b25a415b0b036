"""Checks of a new tokenizer before it is written. Each check raises VocabularyError with an example."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lepmerge.errors import VocabularyError
from lepmerge.vocabulary.vocabulary import Vocabulary

NUM_RANDOM_TEXTS = 10_000


def check_extension(
    old: Vocabulary, new: Vocabulary, sample: Sequence[str], *, added_move: bool = False
) -> dict[str, Any]:
    """Run all checks of a vocabulary that extends an old one, and return their results.

    added_move: the ids of added tokens may change.

    Raises:
        VocabularyError: an old id moved, a special token changed, a new token can never occur, or a text that the old
            tokenizer decoded exactly is no longer decoded exactly.
    """
    check_ids(old, new, added_move=added_move)
    new_ids = sorted(id for token, id in new.all_ids.items() if token not in old.all_ids)
    return {
        "new_tokens": len(new_ids),
        "unreachable": check_reachable(new, new_ids),
        "round_trip": check_round_trips(new, sample, old=old),
        "digits": check_digits(old, new),
    }


def check_ids(old: Vocabulary, new: Vocabulary, *, added_move: bool = False) -> None:
    """Raise if an old token has another id in the new vocabulary, or is missing there."""
    moved = [
        (token, id, new.all_ids.get(token))
        for token, id in (old.ordinary if added_move else old.all_ids).items()
        if new.all_ids.get(token) != id
    ]
    if moved:
        token, id, now = moved[0]
        raise VocabularyError(f"{len(moved)} old tokens have another id, e.g. {token!r}: {id} before, {now} now")
    check_added(old, new)
    if unfaithful := new.unfaithful_ids():
        content, (wanted, given) = next(iter(unfaithful.items()))
        raise VocabularyError(f"the tokenizers library gives {content!r} the id {given} instead of {wanted}")


def check_added(old: Vocabulary, new: Vocabulary) -> None:
    """Raise if a special or added token is missing or its flags changed."""
    for content, token in old.added.items():
        now = new.added.get(content)
        flags = {key: value for key, value in token.entry.items() if key != "id"}
        if now is None or {key: value for key, value in now.entry.items() if key != "id"} != flags:
            raise VocabularyError(f"the special token {content!r} is missing or changed in the new vocabulary")


def check_reachable(new: Vocabulary, ids: Iterable[int]) -> int:
    """Return 0. Raise if a token's own bytes are tokenized into other tokens, so that it would never be used."""
    ids = list(ids)
    lost = [
        id
        for id, encoded in zip(ids, new.encode([new.bytes_of[id] for id in ids]), strict=True)
        if encoded != [id] and is_text(new.bytes_of[id])
    ]
    if lost:
        data = new.bytes_of[lost[0]]
        raise VocabularyError(
            f"{len(lost)} new tokens are unreachable: no text is tokenized into them, e.g. {data!r} (id {lost[0]})"
        )
    return 0


def num_lost(old: Vocabulary, new: Vocabulary, new_id_of: Mapping[int, int]) -> int:
    """Count the tokens that the old vocabulary produced from their own bytes, and that the new one no longer does.

    Byte-fallback tokens do not count: the new vocabulary does not need them for a character that it contains.
    """
    ids = [id for id in new_id_of if id in old.bytes_of and is_text(old.bytes_of[id])]
    ids = [id for id in ids if not old.is_byte_token(old.token_of[id])]
    data = [old.bytes_of[id] for id in ids]
    pairs = zip(ids, old.encode(data), new.encode(data), strict=True)
    return sum(before == [id] and after != [new_id_of[id]] for id, before, after in pairs)


def is_text(data: bytes) -> bool:
    """Return whether bytes are whole characters. A part of a character never occurs alone in a text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_round_trips(
    new: Vocabulary, sample: Sequence[str], *, old: Vocabulary | None = None
) -> dict[str, dict[str, int]]:
    """Return the results of `check_round_trip` for sampled texts and for random strings.

    old: None for a Unigram that lepmerge trained. Such a Unigram decodes every text exactly, except that U+2581, its
    sign for a space, becomes a space. Texts with this character are not checked.
    """
    given = {"sampled": list(sample), "random": random_texts(NUM_RANDOM_TEXTS)}
    if old is None:
        given = {name: [text for text in texts if "▁" not in text] for name, texts in given.items()}
    return {name: check_round_trip(new, texts, old=old) for name, texts in given.items()}


def check_round_trip(new: Vocabulary, texts: Sequence[str], *, old: Vocabulary | None = None) -> dict[str, int]:
    """Encode and decode the texts, and count those that are unchanged.

    Raise if a text changes. With `old`, raise only if the old tokenizer decodes that text exactly.
    """
    good = [text == back for text, back in zip(texts, _there_and_back(new, texts), strict=True)]
    if all(good):
        return {"texts": len(texts), "exact": len(texts)}
    failed = [place for place, is_good in enumerate(good) if not is_good]
    if old is not None:
        before = _there_and_back(old, [texts[place] for place in failed])
        failed = [place for place, old_text in zip(failed, before, strict=True) if old_text == texts[place]]
    if failed:
        example = texts[failed[0]][:60]
        raise VocabularyError(f"the new tokenizer does not decode {len(failed)} texts to themselves, e.g. {example!r}")
    return {"texts": len(texts), "exact": sum(good)}


def _there_and_back(vocabulary: Vocabulary, texts: Sequence[str]) -> list[str]:
    tokenizer = vocabulary.tokenizer
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return tokenizer.decode_batch([encoding.ids for encoding in encoded], skip_special_tokens=False)


def check_digits(old: Vocabulary, new: Vocabulary) -> int:
    """Return the number of digit strings compared. Raise if one is split into other tokens than before."""
    texts = [str(7**n) for n in range(40)] + ["3.14159", "2024-12-31", "x1y22z333", " 1 000 000"]
    split = (
        [
            [vocabulary.text_bytes_of.get(id) for id in encoding.ids]
            for encoding in vocabulary.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]
        for vocabulary in (old, new)
    )
    for text, before, after in zip(texts, *split, strict=True):
        if before != after:
            raise VocabularyError(f"the new tokenizer splits digits differently, e.g. {text!r}")
    return len(texts)


def random_texts(count: int, *, seed: int = 0) -> list[str]:
    """Return strings of random Unicode characters of planes 0 to 2, mixed with spaces and line ends."""
    generator = random.Random(seed)
    bounds = [(0x20, 0x7F), (0x80, 0x250), (0x370, 0x530), (0x530, 0x2000), (0x2000, 0xD800), (0xE000, 0x30000)]
    ranges = [range(*pair) for pair in bounds]
    texts = []
    for _ in range(count):
        characters = [
            generator.choice(" \n\t") if generator.random() < 0.15 else chr(generator.choice(generator.choice(ranges)))
            for _ in range(generator.randrange(1, 24))
        ]
        texts.append("".join(characters))
    return texts
