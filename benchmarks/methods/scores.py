"""What is measured of a model: right answers prompt by prompt, and bits per byte."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from models import Prompt, chat, quickstart
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

BATCH_SIZE = 100
CHARACTERS_OF_PIECE = 240


@torch.inference_mode()
def bits_per_byte(model: LlamaForCausalLM, tokenizer: Tokenizer, lines: Sequence[str]) -> float:
    """Return the bits per byte of the lines. Each line is cut into pieces, and each piece follows <s>."""
    pieces = [piece for line in lines for piece in quickstart.split_text(line, CHARACTERS_OF_PIECE)]
    encodings = tokenizer.encode_batch(pieces, add_special_tokens=False)
    rows = sorted(([quickstart.BEGIN, *encoding.ids] for encoding in encodings), key=len)
    nats = 0.0
    for start in range(0, len(rows), BATCH_SIZE):
        batch = [torch.tensor(row) for row in rows[start : start + BATCH_SIZE]]
        ids = pad_sequence(batch, batch_first=True)  # a causal model does not see the padding at the right
        targets = pad_sequence(batch, batch_first=True, padding_value=-100)[:, 1:]
        logits = model(input_ids=ids).logits[:, :-1]
        nats += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    return nats / math.log(2) / sum(len(piece.encode()) for piece in pieces)


@torch.inference_mode()
def right_answers(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Sequence[Prompt], *, longest: int
) -> list[bool]:
    """Return for each prompt whether the greedy reply, cut at `longest` tokens, is the answer, as text."""
    ids = [tokenizer.encode(chat(prompt)).ids for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda place: len(ids[place]))
    right = [False] * len(prompts)
    end = tokenizer.token_to_id("<|end|>")
    for start in range(0, len(order), BATCH_SIZE):
        places = order[start : start + BATCH_SIZE]
        width = len(ids[places[-1]])
        padding = [width - len(ids[place]) for place in places]
        rows = [[quickstart.PAD] * left + ids[place] for place, left in zip(places, padding, strict=True)]
        mask = [[0] * left + [1] * (width - left) for left in padding]
        replies = model.generate(
            input_ids=torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            max_new_tokens=longest,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=quickstart.PAD,
        )[:, width:].tolist()
        for place, reply in zip(places, replies, strict=True):
            reply = reply[: reply.index(end)] if end in reply else reply
            right[place] = tokenizer.decode(reply).strip() == prompts[place].answer
    return right
