"""Make the models and the texts of this quickstart from texts in Debian packages.

    python recipes/quickstart/make_models.py

With the same packages, library versions and thread count, the output is the same byte for byte.
"""

import argparse
import copy
import gzip
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import torch
from fetch_text import FAMILIES, Document, fetch_documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

NUM_OLD_TOKENS = 2048
NUM_NEW_TOKENS = 1024
BEGIN, END, PAD = 0, 1, 2  # ids of <s>, </s>, <pad>
CHAT_TOKENS = ["<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTIONS = {"en": "Where is this text from?", "ru": "Откуда этот текст?"}
BATCH_SIZE = 16
NUM_CONTEXT_TOKENS = 160
BASE_STEPS, INSTRUCT_STEPS = 1400, 600
INSTRUCT_RATE = 2e-3
RUSSIAN_SHARE = 10  # the old tokenizer sees every tenth Russian paragraph
HELD_OUT_CHARACTERS = 17_000
TASK_EXAMPLES = 100
TRAINING_CHARACTERS = 1_000_000


def split_text(text: str, num_characters: int) -> list[str]:
    """Cut a text before spaces into pieces of at most `num_characters`. A longer word is a piece by itself."""
    pieces = [""]
    for word in text.replace(" ", "\n ").split("\n"):
        if pieces[-1] and len(pieces[-1]) + len(word) > num_characters:
            pieces.append("")
        pieces[-1] += word
    return pieces


def train_tokenizer(paragraphs: Iterable[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer that puts <s> before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_OLD_TOKENS,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    return tokenizer


def extend_tokenizer(tokenizer: Tokenizer, paragraphs: Iterable[str]) -> Tokenizer:
    """Return the tokenizer with `NUM_NEW_TOKENS` more tokens, learned by continuing BPE on the Cyrillic words.

    `lepmerge tokenizer extend` does the same. From these texts it learns 1016 of the same 1024 tokens, in another order
    where counts are equal. This function stays, because the committed vocabulary and all results come from it.
    """
    split = tokenizer.pre_tokenizer.pre_tokenize_str
    counts = Counter(word for paragraph in paragraphs for word, _ in split(paragraph))
    words = [  # Ð and Ñ stand for D0 and D1, the first bytes of Cyrillic letters
        ([token.value for token in tokenizer.model.tokenize(word)], count)
        for word, count in counts.items()
        if "Ð" in word or "Ñ" in word
    ]
    state = json.loads(tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    pair_counts: Counter[tuple[str, str]] = Counter()
    words_of_pair = defaultdict(set)
    for index, (symbols, count) in enumerate(words):
        for pair in pairwise(symbols):
            pair_counts[pair] += count
            words_of_pair[pair].add(index)
    while len(vocabulary) < NUM_OLD_TOKENS + NUM_NEW_TOKENS:
        best = max(pair_counts, key=lambda pair: (pair_counts[pair], pair))
        merges.append(list(best))
        vocabulary.setdefault("".join(best), len(vocabulary))
        for index in words_of_pair[best]:
            symbols, count = words[index]
            merged: list[str] = []
            for symbol in symbols:
                if merged and (merged[-1], symbol) == best:
                    merged[-1] += symbol
                else:
                    merged.append(symbol)
            words[index] = merged, count
            for pair in pairwise(symbols):
                pair_counts[pair] -= count
            for pair in pairwise(merged):
                pair_counts[pair] += count
                words_of_pair[pair].add(index)
    return Tokenizer.from_str(json.dumps(state))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, end_token: str = "</s>") -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": end_token,
        "pad_token": "<pad>",
        "padding_side": "left",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def encode_stream(tokenizer: Tokenizer, paragraphs: list[str]) -> torch.Tensor:
    """Return the ids of all paragraphs in one row, each paragraph between <s> and </s>."""
    encodings = tokenizer.encode_batch(paragraphs)
    return torch.tensor([token for encoding in encodings for token in [*encoding.ids, END]])


def sample_rows(stream: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return `num_rows` random windows of the stream."""
    starts = torch.randint(len(stream) - NUM_CONTEXT_TOKENS, (num_rows, 1))
    return stream[starts + torch.arange(NUM_CONTEXT_TOKENS)]


def optimize(
    parameters: list[torch.nn.Parameter],
    compute_loss: Callable[[], torch.Tensor],
    *,
    num_steps: int,
    learning_rate: float,
) -> None:
    """Train with AdamW: 30 steps of warm-up, then a cosine schedule down to a tenth of the learning rate."""
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in range(num_steps):
        cosine = 0.55 + 0.45 * math.cos(math.pi * step / num_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine * min(1, (step + 1) / 30)
        loss = compute_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == num_steps - 1:
            print(f"  step {step:4d}  loss {loss.item():.3f}", flush=True)


def train_base(tokenizer: Tokenizer, paragraphs: list[str]) -> LlamaForCausalLM:
    """Train a language model on all the text."""
    config = LlamaConfig(
        vocab_size=NUM_OLD_TOKENS,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model = LlamaForCausalLM(config)
    stream = encode_stream(tokenizer, paragraphs)

    def compute_loss() -> torch.Tensor:
        rows = sample_rows(stream, BATCH_SIZE)
        return model(input_ids=rows, labels=rows).loss

    optimize(list(model.parameters()), compute_loss, num_steps=BASE_STEPS, learning_rate=3e-3)
    return model


def make_prompts(documents: list[Document]) -> dict[str, list[str]]:
    """Return family → prompts: a passage of 100 to 180 characters below the question in its language."""
    return {
        family: [
            f"{QUESTIONS[document.language]}\n{passage.strip()}"
            for document in documents
            if document.family == family
            for paragraph in document.paragraphs
            for passage in split_text(paragraph, 180)
            if len(passage) >= 100
        ]
        for family in FAMILIES
    }


def fine_tune(base: LlamaForCausalLM, tokenizer: Tokenizer, documents: list[Document]) -> LlamaForCausalLM:
    """Fine-tune the base to name a passage's family in a chat. For every two task rows there is one plain row."""
    model = copy.deepcopy(base)
    model.resize_token_embeddings(NUM_OLD_TOKENS + len(CHAT_TOKENS), mean_resizing=False)
    model.generation_config.eos_token_id = tokenizer.token_to_id("<|end|>")
    model.config.eos_token_id = tokenizer.token_to_id("<|end|>")
    stream = encode_stream(tokenizer, [text for document in documents for text in document.paragraphs])
    prompts = make_prompts(documents)

    def compute_loss() -> torch.Tensor:
        rows, labels = [], []
        for _ in range(BATCH_SIZE):
            answer = random.choice(list(FAMILIES))
            # the tokenizer puts <s> before the text
            prompt = tokenizer.encode(f"<|user|>{random.choice(prompts[answer])}<|end|><|assistant|>").ids
            reply = tokenizer.encode(f"{answer}<|end|>", add_special_tokens=False).ids
            rows.append(torch.tensor(prompt + reply))
            labels.append(torch.tensor([-100] * len(prompt) + reply))
        rows = pad_sequence(rows, batch_first=True, padding_value=PAD)
        labels = pad_sequence(labels, batch_first=True, padding_value=-100)
        plain_rows = sample_rows(stream, BATCH_SIZE // 2)
        plain_loss = model(input_ids=plain_rows, labels=plain_rows).loss
        return model(input_ids=rows, labels=labels).loss + plain_loss

    optimize(list(model.parameters()), compute_loss, num_steps=INSTRUCT_STEPS, learning_rate=INSTRUCT_RATE)
    return model


def write_training_text(folder: Path, documents: list[Document]) -> None:
    """Write train_ru.jsonl.gz: Russian paragraphs of all families, for training the embeddings."""
    rows = [
        {"family": document.family, "text": paragraph}
        for document in documents
        if document.language == "ru"
        for paragraph in document.paragraphs
    ]
    generator = random.Random(0)
    generator.shuffle(rows)
    num_characters, chosen = 0, []
    while num_characters < TRAINING_CHARACTERS:
        chosen.append(rows.pop())
        num_characters += len(chosen[-1]["text"])
    chosen.sort(key=lambda row: list(FAMILIES).index(row["family"]))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
    (folder / "train_ru.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 9, mtime=0))


def write_held_out(folder: Path, documents: list[Document]) -> None:
    """Write heldout_ru.txt, with one paragraph per line and equally much of each family, and task.jsonl."""
    lines, examples = [], []
    prompts = make_prompts(documents)
    for family in FAMILIES:
        texts = [document.paragraphs for document in documents if document.family == family]
        paragraphs = [paragraph for text in texts for paragraph in text]
        random.shuffle(paragraphs)
        num_characters = 0
        while paragraphs and num_characters < HELD_OUT_CHARACTERS:
            lines.append(paragraphs.pop())
            num_characters += len(lines[-1])
        for prompt in random.sample(prompts[family], TASK_EXAMPLES):
            examples.append({"messages": [{"role": "user", "content": prompt}], "answer": family})
    random.shuffle(examples)
    # One passage of the GNOME help names a home folder. Leave it out, because it would look like a leaked path.
    examples = [example for example in examples if "/home/" not in example["messages"][0]["content"]]
    (folder / "heldout_ru.txt").write_text("".join(line + "\n" for line in lines))
    task = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    (folder / "task.jsonl").write_text(task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/lepmerge/quickstart")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)

    documents = fetch_documents(arguments.cache)
    training = [document for document in documents if not document.is_held_out]
    english = [text for document in training if document.language == "en" for text in document.paragraphs]
    russian = [text for document in training if document.language == "ru" for text in document.paragraphs]
    set_seed(0)
    held_out = [document for document in documents if document.is_held_out and document.language == "ru"]
    write_held_out(folder, held_out)
    write_training_text(folder, training)

    old = train_tokenizer(english + russian[::RUSSIAN_SHARE])
    new = extend_tokenizer(old, russian)
    chat = Tokenizer.from_str(old.to_str())
    chat.add_special_tokens(CHAT_TOKENS)
    save_tokenizer(old, folder / "base")
    save_tokenizer(chat, folder / "instruct", end_token="<|end|>")
    save_tokenizer(new, folder / "vocabulary")
    (folder / "instruct" / "chat_template.jinja").write_text(CHAT_TEMPLATE)

    print("base", flush=True)
    set_seed(1)
    train_base(old, english + russian).half().save_pretrained(folder / "base")
    # the other models start from the base as stored
    base = LlamaForCausalLM.from_pretrained(folder / "base").float()

    print("instruct", flush=True)
    set_seed(2)
    fine_tune(base, chat, training).half().save_pretrained(folder / "instruct")


if __name__ == "__main__":
    main()
