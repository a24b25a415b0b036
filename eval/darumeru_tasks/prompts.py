"""Convert documents to prompts: completion format for base models, chat template for instruct models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from darumeru_tasks.documents import Document, Message
from darumeru_tasks.errors import DarumeruError

ChatTemplate = Callable[..., str]
"""(messages, add_generation_prompt=bool) → text. Without a generation prompt, the text ends within the last message."""


@dataclass(frozen=True)
class Format:
    """The format in which messages become a text.

    system: system message. chat_template: that of the model, or None for the completion format. multiturn: whether
    shots are separate turns of the chat; otherwise they precede the question in one user message.
    """

    system: str | None = None
    chat_template: ChatTemplate | None = None
    multiturn: bool = True

    def prompt(self, shots: Sequence[list[Message]], question: list[Message]) -> str:
        """Return the text of the complete shots and the question. The text ends within the question's last message."""
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
        """Return the text before the last message of the question.

        Raises:
            DarumeruError: the chat template changes that message.
        """
        text, message = self.prompt([], question), question[-1]["content"]
        if not text.endswith(message):
            raise DarumeruError(f"the chat template does not leave the assistant's message open: {text[-80:]!r}")
        return text.removesuffix(message)


def completion(messages: Sequence[Message]) -> str:
    """Return messages in the format for base models, one per line. The model continues the text with the answer."""
    texts = [message["content"] for message in messages]
    return "\n".join(texts if messages[-1]["role"] == "assistant" else [*texts, ""])


def choose_shots(
    available: Sequence[Document], question: Document, number: int, *, nearest_first: bool
) -> list[Document]:
    """Return the first `number` available shots, in the order in which they are shown.

    nearest_first: reverse the order, so that the first shot is closest to the question. If the question has a
    `subject`, only shots with the same subject are used.
    """
    subject = question.get("subject")
    fitting = [shot for shot in available if shot.get("subject") == subject][:number]
    return fitting[::-1] if nearest_first else fitting


def with_headline(documents: Sequence[Document]) -> list[list[Message]]:
    """Return the messages of the documents. Those of the first document begin with its headline, if it has one."""
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
    """Return the format for the arguments that the harness passes to `fewshot_context`."""
    template = chat_template if apply_chat_template else None
    return Format(system_instruction, template, fewshot_as_multiturn)
