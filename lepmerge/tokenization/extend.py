"""Continued BPE: learn new merges on words that the old merges have already split.

Old merges keep their ranks and new merges follow. So a text is first split into old tokens, which the new merges then
join. Hence every new token can occur, and where no new merge applies, the tokens are the same as before.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lepmerge.errors import VocabularyError
from lepmerge.progress import Progress
from lepmerge.tokenization.script import Allowed
from lepmerge.tokenization.train import renumbered
from lepmerge.tokenization.words import old_tokens
from lepmerge.vocabulary.union import with_tokens
from lepmerge.vocabulary.vocabulary import Vocabulary

LEAST_COUNT = 2
Pair = tuple[int, int]


@dataclass(frozen=True)
class Extension:
    """New token strings in the order of their ids, and new merges in the order of their ranks."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]


def learn(
    words: Iterable[tuple[str, int]],
    vocabulary: Vocabulary,
    *,
    num_tokens: int,
    allowed: Allowed,
    progress: Progress | None = None,
) -> Extension:
    """Learn at most num_tokens new tokens and their merges. Each step joins the most frequent allowed pair.

    Of equally frequent pairs, the one with the lowest ids is joined. A pair whose joined string is an old token is
    never joined, because an old merge could then apply to the result. If the model's alphabet consists of characters
    rather than bytes, characters that it lacks become tokens first.

    Raises:
        VocabularyError: the old vocabulary is not a BPE.
    """
    if vocabulary.spec["model"]["type"] != "BPE":
        kind = vocabulary.spec["model"]["type"]
        raise VocabularyError(f"{vocabulary.folder}: only BPE vocabularies can be extended, this one is {kind}")
    counted = sorted(words)
    known = vocabulary.model_ids
    letters = _new_letters(counted, vocabulary, allowed)[:num_tokens]
    strings = {id: token for token, id in known.items()}
    first_new = max(strings) + 1
    id_of = {letter: first_new + place for place, letter in enumerate(letters)}
    strings.update({id: letter for letter, id in id_of.items()})
    words_of_ids = _split(counted, vocabulary, id_of)
    learner = _Learner(words_of_ids, [count for _, count in counted])
    merges: list[tuple[str, str]] = []
    while len(id_of) < num_tokens:
        pair = learner.best()
        if pair is None:
            break
        left, right = strings[pair[0]], strings[pair[1]]
        joined = left + right
        if joined in known or not allowed(vocabulary.token_bytes(joined)):
            learner.drop(pair)
            continue
        if joined not in id_of:
            id_of[joined] = first_new + len(id_of)
            strings[id_of[joined]] = joined
            if progress:
                progress("learning merges", 1)
        merges.append((left, right))
        learner.join(pair, id_of[joined])
    return Extension(tuple(id_of), tuple(merges))


def _new_letters(words: Sequence[tuple[str, int]], vocabulary: Vocabulary, allowed: Allowed) -> list[str]:
    """Return the characters in the words that the vocabulary lacks, most frequent first; none if it is byte-level."""
    if vocabulary.family == "byte_level":
        return []
    counts: dict[str, int] = defaultdict(int)
    for word, count in words:
        for character in word:
            if character not in vocabulary.model_ids:
                counts[character] += count
    found = [c for c, count in counts.items() if count >= LEAST_COUNT and allowed(vocabulary.token_bytes(c))]
    return sorted(found, key=lambda character: (-counts[character], character))


def _split(words: Sequence[tuple[str, int]], vocabulary: Vocabulary, letters: dict[str, int]) -> list[list[int]]:
    """Return the ids of each word. A new letter gets its own id, and the parts around it are tokenized separately."""
    split = list(old_tokens((word for word, _ in words), vocabulary))
    if letters:
        for place, (word, _) in enumerate(words):
            if any(letter in word for letter in letters):
                parts = _around(word, letters)
                ids = iter(old_tokens((part for part in parts if part not in letters), vocabulary))
                split[place] = [id for part in parts for id in ([letters[part]] if part in letters else next(ids))]
    return split


def _around(word: str, letters: dict[str, int]) -> list[str]:
    parts = [""]
    for character in word:
        if character in letters:
            parts += [character, ""]
        else:
            parts[-1] += character
    return [part for part in parts if part]


class _Learner:
    """Counts of adjacent pairs in the words, updated as pairs are joined.

    The heap may hold outdated counts. `best` corrects them when they reach the top, which is cheaper than searching the
    heap at every change.
    """

    def __init__(self, words: list[list[int]], counts: Sequence[int]) -> None:
        self.words, self.counts = words, counts
        self.count_of: dict[Pair, int] = defaultdict(int)
        self.words_of: dict[Pair, set[int]] = defaultdict(set)
        for number, ids in enumerate(words):
            count = counts[number]
            for pair in zip(ids, ids[1:], strict=False):
                self.count_of[pair] += count
                self.words_of[pair].add(number)
        self.heap = [(-count, pair) for pair, count in self.count_of.items() if count >= LEAST_COUNT]
        heapq.heapify(self.heap)
        self.dropped: set[Pair] = set()

    def best(self) -> Pair | None:
        """Return the most frequent pair, or None if all remaining pairs are rarer than LEAST_COUNT."""
        while self.heap:
            negative, pair = self.heap[0]
            count = self.count_of.get(pair, 0)
            if count == -negative and pair not in self.dropped:
                return pair
            heapq.heappop(self.heap)
            if count >= LEAST_COUNT and pair not in self.dropped and count < -negative:
                heapq.heappush(self.heap, (-count, pair))
        return None

    def drop(self, pair: Pair) -> None:
        """Exclude this pair from now on."""
        self.dropped.add(pair)
        self.words_of.pop(pair, None)

    def join(self, pair: Pair, new: int) -> None:
        """Replace the pair by the id `new` in every word, from left to right."""
        left, right = pair
        changes: dict[Pair, int] = defaultdict(int)
        for number in self.words_of.pop(pair):
            ids, count = self.words[number], self.counts[number]
            joined: list[int] = []
            place, last = 0, len(ids) - 1
            while place <= last:
                if place < last and ids[place] == left and ids[place + 1] == right:
                    joined.append(new)
                    place += 2
                else:
                    joined.append(ids[place])
                    place += 1
            if len(joined) == len(ids):
                continue  # an earlier merge removed the pair from this word
            for old_pair in zip(ids, ids[1:], strict=False):
                changes[old_pair] -= count
            for new_pair in zip(joined, joined[1:], strict=False):
                changes[new_pair] += count
                if new in new_pair:
                    self.words_of[new_pair].add(number)
            self.words[number] = joined
        changes.pop(pair, None)
        self.count_of.pop(pair, None)
        for changed, difference in changes.items():
            if difference:
                count = self.count_of[changed] + difference
                self.count_of[changed] = count
                if difference > 0 and count >= LEAST_COUNT and changed not in self.dropped:
                    heapq.heappush(self.heap, (-count, changed))


def extended_spec(vocabulary: Vocabulary, extension: Extension, *, layout: str = "after") -> dict:
    """Return the tokenizer.json with the new tokens after the last used id, so that no old id moves.

    With the layout `before` the new tokens come before the added tokens at the end of the vocabulary.
    """
    if layout == "before":
        vocabulary = _with_room(vocabulary, len(extension.tokens))
        first = max(vocabulary.ordinary.values()) + 1
    else:
        first = vocabulary.size
    return with_tokens(vocabulary, extension.tokens, extension.merges, first=first).spec


def _with_room(vocabulary: Vocabulary, count: int) -> Vocabulary:
    """Return the vocabulary with the added tokens after the last ordinary token moved up by `count` ids."""
    last = max(vocabulary.ordinary.values())
    id_map = {token.id: token.id + count * (token.id > last) for token in vocabulary.added.values()}
    moved = {content: id_map[token.id] for content, token in vocabulary.added.items()}
    model = vocabulary.spec["model"]
    vocab = {token: moved.get(token, id) for token, id in model["vocab"].items()}
    added = [{**entry, "id": id_map[entry["id"]]} for entry in vocabulary.spec["added_tokens"]]
    post_processor = renumbered(vocabulary.spec.get("post_processor"), id_map)
    return Vocabulary(
        {
            **vocabulary.spec,
            "added_tokens": added,
            "post_processor": post_processor,
            "model": {**model, "vocab": vocab},
        }
    )
