"""Documents → the text that the model reads: completion format for base models, chat template for instruct models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from darumeru_tasks.documents import Document, Message
from darumeru_tasks.errors import DarumeruError

ChatTemplate = Callable[..., str]
"""(messages, add_generation_prompt=bool) → text; without a generation prompt the last message stays open."""


@dataclass(frozen=True)
class Format:
    """How messages become a text.

    chat_template: the model's, None for the completion format. multiturn: whether shots are turns of their own in the
    chat, or stand in one user message before the question.
    """

    system: str | None = None
    chat_template: ChatTemplate | None = None
    multiturn: bool = True

    def prompt(self, shots: Sequence[list[Message]], question: list[Message]) -> str:
        """Return the text of the shots, as they stand, and the question, whose last message is left open."""
        if self.chat_template is None:
            texts = [f"{self.system}\n\n"] if self.system else []
            texts += [completion(shot) + "\n\n" for shot in shots]
            return "".join(texts) + completion(question)
        if not self.multiturn and shots:
            first, *rest = question
            before = "".join(completion(shot) + "\n\n" for shot in shots)
            shots, question = [], [{**first, "content": before + first["content"]}, *rest]
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages += [message for shot in shots for message in shot] + question
        if messages[-1]["role"] == "assistant" and messages[-1]["content"]:
            return self.chat_template(messages, add_generation_prompt=False)
        if messages[-1]["role"] == "assistant":
            messages.pop()
        return self.chat_template(messages, add_generation_prompt=True)

    def before_answer(self, question: list[Message]) -> str:
        """Return the text that stands before the last message of the question.

        Raises:
            DarumeruError: the chat template changes that message.
        """
        text, message = self.prompt([], question), question[-1]["content"]
        if not text.endswith(message):
            raise DarumeruError(f"the chat template does not leave the assistant's message open: {text[-80:]!r}")
        return text.removesuffix(message)


def completion(messages: Sequence[Message]) -> str:
    """Return messages in the format for base models: one below the other; the text ends where the answer goes on."""
    texts = [message["content"] for message in messages]
    return "\n".join(texts if messages[-1]["role"] == "assistant" else [*texts, ""])


def choose_shots(
    available: Sequence[Document], question: Document, number: int, *, nearest_first: bool
) -> list[Document]:
    """Return the first `number` of the available shots in the order in which they are shown.

    nearest_first: the first one stands nearest to the question; otherwise they keep their order.
    A document with a `subject` takes shots of its own subject.
    """
    subject = question.get("subject")
    fitting = [shot for shot in available if shot.get("subject") == subject][:number]
    return fitting[::-1] if nearest_first else fitting


def with_headline(documents: Sequence[Document]) -> list[list[Message]]:
    """Return the messages of the documents; the first one's begin with its headline, if it has one."""
    first = documents[0]["messages"]
    headed = [{**first[0], "content": documents[0].get("headline", "") + first[0]["content"]}, *first[1:]]
    return [headed, *(document["messages"] for document in documents[1:])]


def prompt_format(
    system_instruction: str | None = None,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = False,
    chat_template: Callable[..., str] | None = None,
    gen_prefix: str | None = None,
) -> Format:
    """Return the format that the harness's arguments of `fewshot_context` ask for."""
    template = chat_template if apply_chat_template else None
    return Format(system_instruction, template, fewshot_as_multiturn)
