"""Sources of text in a training configuration."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lepmerge.config.schema import Strict, num_bytes

Size = Annotated[int, BeforeValidator(num_bytes), Field(gt=0)]


class Source(Strict):
    """A source of text: a file, a folder, a glob, or a data set on the Hub."""

    path: str
    """File, folder, glob, or data set on the Hub."""
    column: str = "text"
    """Field of .jsonl and .parquet rows that holds the text."""
    split: str | None = None
    """In folders and Hub data sets, read only files whose name or folder begins with this split, e.g. `train`."""
    limit: Size | None = None
    """Read at most this much, e.g. 1GB."""


class TrainingSource(Source):
    """A source of training text or chats."""

    kind: Literal["text", "chat"] = "text"
    """`text`, or `chat`: .jsonl rows with `messages`. A chat that ends with a user message is read as a prompt."""
    prompt: str | None = None
    """Turn each text into a prompt with this user message, e.g. `"Summarize: {text}"`."""
    cut: Size | None = None
    """Cut texts into parts of at most this many bytes, always before a space. Useful with `prompt`."""
    weight: float = Field(default=1.0, gt=0)
    """How often an epoch uses each block of this source: 0.5 uses half of the blocks, 2 uses each block twice."""

    @property
    def is_chats(self) -> bool:
        """Whether the records of this source are rendered with a chat template."""
        return self.kind == "chat" or self.prompt is not None

    @model_validator(mode="after")
    def _prompt_has_a_place(self) -> "TrainingSource":
        if self.prompt is not None and "{text}" not in self.prompt:
            raise ValueError("prompt should hold {text}, where the text goes")
        if self.kind == "chat" and (self.prompt or self.cut):
            raise ValueError("`prompt` and `cut` are for texts, not for `kind: chat`")
        return self


def sources_from_text(sources: Any) -> Any:
    """Expand sources that are written as a string to `{path: …}`."""
    if isinstance(sources, dict):
        return {name: {"path": source} if isinstance(source, str) else source for name, source in sources.items()}
    return [{"path": source} if isinstance(source, str) else source for source in sources]
