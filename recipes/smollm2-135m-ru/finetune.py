"""Fine-tune BASE for a few steps on generated instructions, and print how far its embeddings moved."""

import argparse
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WORDS = (
    "apple bridge candle desert engine forest garden harbor island jacket kitchen ladder mirror needle "
    "orange pencil quarter river silver table umbrella valley window yellow zebra anchor butter copper dinner"
).split()


def instruction(generator: random.Random) -> tuple[str, str]:
    """Return an instruction and its answer."""
    words = generator.sample(WORDS, generator.randint(3, 6))
    listed = ", ".join(words)
    first, second = generator.randint(2, 99), generator.randint(2, 99)
    return generator.choice(
        [
            (f"Sort these words alphabetically: {listed}.", ", ".join(sorted(words))),
            (f"Reverse the order of these words: {listed}.", ", ".join(reversed(words))),
            (f"How many words are in this list: {listed}?", f"There are {len(words)} words in the list."),
            (f'Write "{words[0]} {words[1]}" in capital letters.', f"{words[0]} {words[1]}".upper()),
            (f'What is the first letter of "{words[0]}"?', f"The first letter is {words[0][0]}."),
            (f"What is {first} plus {second}?", f"{first} plus {second} is {first + second}."),
        ]
    )


def chat_batch(tokenizer, pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Return padded ids, attention mask and labels of chats. Only the answers have labels."""
    rows = []
    for question, answer in pairs:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(prompt).input_ids
        answer_ids = tokenizer(answer + tokenizer.eos_token).input_ids
        rows.append((prompt_ids + answer_ids, [-100] * len(prompt_ids) + answer_ids))
    width = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
    }


def finetune(base: Path, out: Path, *, num_steps: int, device: str, batch_size: int = 2) -> float:
    """Fine-tune and save to `out`. Return the drift ‖E_i − E_b‖ / ‖E_b‖ of the embeddings as stored, in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
    tokenizer = AutoTokenizer.from_pretrained(base)
    base_table = model.get_input_embeddings().weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0, fused=True)
    generator = random.Random(0)
    model.train()
    for step in range(num_steps):
        batch = chat_batch(tokenizer, [instruction(generator) for _ in range(batch_size)])
        loss = model(**{name: ids.to(device) for name, ids in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == num_steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return ((model.get_input_embeddings().weight.float() - base_table).norm() / base_table.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    drift = finetune(arguments.base, arguments.out, num_steps=arguments.steps, device=arguments.device)
    print(f"drift of the embeddings: {drift:.2e}")


if __name__ == "__main__":
    main()
