"""Continued BPE: learn new merges on words that the old merges have already split.

Old merges keep their ranks and new merges follow. So a text is first split into old tokens, which the new merges then
join. Hence every new token can occur, and where no new merge applies, the tokens are the same as before.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import add

from lepmerge.errors import VocabularyError
from lepmerge.progress import Progress
from lepmerge.tokenization.script import Allowed
from lepmerge.tokenization.train import renumbered
from lepmerge.tokenization.words import old_tokens
from lepmerge.vocabulary.union import with_tokens
from lepmerge.vocabulary.vocabulary import Vocabulary

LEAST_COUNT = 2


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
    in_order = [token for token, _ in sorted(known.items(), key=lambda item: item[1])] + letters
    character_of = {token: chr(place) for place, token in enumerate(in_order)}
    string_of = {character: token for token, character in character_of.items()}
    learner = _Learner(_split(counted, vocabulary, letters, character_of), [count for _, count in counted])
    new = dict.fromkeys(letters)
    merges: list[tuple[str, str]] = []
    while len(new) < num_tokens:
        pair = learner.best()
        if pair is None:
            break
        left, right = string_of[pair[0]], string_of[pair[1]]
        joined = left + right
        if joined in known or not allowed(vocabulary.token_bytes(joined)):
            learner.drop(pair)
            continue
        if joined not in new:
            new[joined] = None
            character_of[joined] = chr(len(string_of))
            string_of[character_of[joined]] = joined
            if progress:
                progress("learning merges", 1)
        merges.append((left, right))
        learner.join(pair, character_of[joined])
    return Extension(tuple(new), tuple(merges))


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


def _split(
    words: Sequence[tuple[str, int]], vocabulary: Vocabulary, letters: Sequence[str], character_of: Mapping[str, str]
) -> list[str]:
    """Return the tokens of each word, one character per token.

    A new letter is a token, and the parts around it are tokenized separately.
    """
    of_id = {id: character_of[token] for token, id in vocabulary.model_ids.items()}
    split = ["".join(map(of_id.__getitem__, ids)) for ids in old_tokens((word for word, _ in words), vocabulary)]
    if letters:
        new = {letter: character_of[letter] for letter in letters}
        for place, (word, _) in enumerate(words):
            if not new.keys().isdisjoint(word):
                parts = _around(word, new)
                others = old_tokens((part for part in parts if part not in new), vocabulary)
                split[place] = "".join(new.get(part) or "".join(map(of_id.__getitem__, next(others))) for part in parts)
    return split


def _around(word: str, letters: Mapping[str, str]) -> list[str]:
    parts = [""]
    for character in word:
        if character in letters:
            parts += [character, ""]
        else:
            parts[-1] += character
    return [part for part in parts if part]


class _Learner:
    """Counts of adjacent pairs in the words, updated as pairs are joined.

    A word is a string with one character per token, chr(id), so that str finds and replaces pairs. The heap may hold
    outdated counts. `best` corrects them when they reach the top, which is cheaper than searching the heap at every
    change. words_of may name words that have lost the pair.
    """

    def __init__(self, words: list[str], counts: Sequence[int]) -> None:
        self.words, self.counts = words, counts
        self.words_of: dict[str, list[int]] = defaultdict(list)
        for number, word in enumerate(words):
            for pair in map(add, word, word[1:]):
                self.words_of[pair].append(number)
        self.count_of = {pair: sum(map(counts.__getitem__, numbers)) for pair, numbers in self.words_of.items()}
        self.heap = [(-count, pair) for pair, count in self.count_of.items() if count >= LEAST_COUNT]
        heapq.heapify(self.heap)
        self.dropped: set[str] = set()

    def best(self) -> str | None:
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

    def drop(self, pair: str) -> None:
        """Exclude this pair from now on."""
        self.dropped.add(pair)
        self.words_of.pop(pair, None)

    def join(self, pair: str, new: str) -> None:
        """Replace the pair by the token `new` in every word, from left to right."""
        left, right = pair
        befores: dict[str, list[int]] = defaultdict(list)  # neighbour → number of the word, once for each place
        afters: dict[str, list[int]] = defaultdict(list)
        adjoining: list[int] = []
        for number in self.words_of.pop(pair):
            parts = self.words[number].split(pair)
            if len(parts) == 1:
                continue  # an earlier merge removed the pair from this word
            self.words[number] = new.join(parts)
            for before, after in pairwise(parts):
                if before:
                    befores[before[-1]].append(number)
                if after:
                    afters[after[0]].append(number)
            if len(parts) > 2:
                adjoining += [number] * parts[1:-1].count("")
        moved = [(before + left, before + new, numbers) for before, numbers in befores.items()]
        moved += [(right + after, new + after, numbers) for after, numbers in afters.items()]
        if adjoining:
            moved.append((right + left, new + new, adjoining))
        changes: dict[str, int] = defaultdict(int)
        for old_pair, new_pair, numbers in moved:
            count = sum(map(self.counts.__getitem__, numbers))
            changes[old_pair] -= count
            changes[new_pair] += count
            self.words_of[new_pair] += numbers
        changes.pop(pair, None)
        self.count_of.pop(pair, None)
        for changed, difference in changes.items():
            if difference:
                count = self.count_of.get(changed, 0) + difference
                self.count_of[changed] = count
                if difference > 0 and count >= LEAST_COUNT and changed not in self.dropped:
                    heapq.heappush(self.heap, (-count, changed))


def extended(vocabulary: Vocabulary, extension: Extension, *, layout: str = "after") -> Vocabulary:
    """Return the vocabulary with the new tokens after the last used id, so that no old id moves.

    With the layout `before` the new tokens come before the added tokens at the end of the vocabulary.
    """
    if layout == "before":
        vocabulary = _with_room(vocabulary, len(extension.tokens))
        first = max(vocabulary.ordinary.values()) + 1
    else:
        first = vocabulary.size
    return with_tokens(vocabulary, extension.tokens, extension.merges, first=first)


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
