"""Turn the options of a run into a job: read prompts and copies, open models."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepmerge.chats import Chat, Message
from lepmerge.errors import GenerationError, OptionError
from lepmerge.generation.copies import check_separate, copies, num_copies
from lepmerge.generation.engine import Engine, Sampling
from lepmerge.generation.filters import OPTIONAL, Filters
from lepmerge.generation.grader import MAX_NEW_TOKENS, read_grader_prompt
from lepmerge.generation.passages import FORMS, SHORTEST, Wordings, drawn_passages, letters_of, read_wordings
from lepmerge.generation.prompts import prompts_of_files, prompts_of_text
from lepmerge.generation.run import Grading, Job
from lepmerge.generation.server import ServerEngine, base_url
from lepmerge.launch import is_launched
from lepmerge.paths import is_path

if TYPE_CHECKING:
    from lepmerge.training.group import Group  # imports torch, which a server's answers do not need


@dataclass(frozen=True)
class Options:
    """What `lepmerge generate` is asked to do; the help of the command explains each option."""

    model: str
    output: Path
    prompts: Sequence[Path] = ()
    texts: Sequence[str] = ()
    forms: Sequence[str] = ()
    text_prompts: int = 1000
    column: str = "text"
    longest: int = 1500
    wordings: Path | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    candidates: int = 1
    seed: int = 0
    batch_size: int = 16
    device: str = "auto"
    dtype: str | None = None
    server: str | None = None
    concurrency: int = 8
    api_key_env: str | None = None
    scripts: Sequence[str] = ()
    kept: Sequence[str] = ()
    grader: str | None = None
    grader_server: str | None = None
    grader_api_key_env: str | None = None
    grader_prompt: Path | None = None
    min_score: float = 4.0
    copies: Sequence[str] = ()
    copy_fraction: float = 0.4

    def check(self) -> None:
        """Raise OptionError when options contradict one another."""
        if not self.prompts and not self.texts:
            raise OptionError("there are no prompts: name .jsonl files of prompts, or plain text with --text")
        if (self.server or self.grader_server) and is_launched():
            raise OptionError("a server answers all prompts of one process: run this command without `accelerate "
                              "launch`, and send more requests at once with --concurrency")  # fmt: skip
        if self.candidates > 1 and self.temperature == 0:
            raise OptionError("--candidates: greedy answers are all the same; give a --temperature, for example 0.7")
        if self.grader is None and (self.grader_server or self.grader_prompt):
            raise OptionError("--grader-server and --grader-prompt need --grader MODEL")
        for option, variable, server in (
            ("api-key-env", self.api_key_env, self.server),
            ("grader-api-key-env", self.grader_api_key_env, self.grader_server),
        ):
            if variable and not server:
                raise OptionError(f"--{option} names the key of a server: it needs --{option[:-11]}server")
            if variable and not os.environ.get(variable):
                raise OptionError(f"--{option}: the environment has no variable {variable}")

    def draw(self, sources: Sequence[str], number: int) -> list[str]:
        """Return passages of plain text.

        Raises:
            GenerationError: the text has no passage.
        """
        found = drawn_passages(sources, number, column=self.column, longest=self.longest, seed=self.seed)
        if not found:
            raise GenerationError(
                f"{', '.join(sources)}: no passage has {SHORTEST} characters or more; shorter ones are not used"
            )
        return found

    def described(self) -> dict[str, Any]:
        """Return the options that decide the output, for the report: models and files by name, without folders."""
        paths = ("model", "prompts", "texts", "wordings", "grader", "grader_prompt", "copies")
        servers = ("server", "grader_server", "concurrency", "api_key_env", "grader_api_key_env")
        found = {key: value for key, value in asdict(self).items() if key not in ("output", *servers)}
        return {
            **{key: _name(value) if key in paths else value for key, value in found.items()},
            "on_server": self.server is not None,
        }


def _name(value: Any) -> Any:
    """Return a file, a folder or a Hub id without the folders of this machine."""
    if isinstance(value, str | Path):
        return Path(value).name if is_path(str(value), Path()) else value
    return [_name(part) for part in value] if value else value


def make_job(options: Options) -> Job:
    """Return the job of the options. Everything that can be wrong with them is found here, before any computing.

    Raises:
        LepmergeError: options, prompts, texts, wordings, models or a server are not usable.
    """
    options.check()
    for script in options.scripts:
        letters_of(script, "")
    wordings = read_wordings(options.wordings)
    prompts = _prompts(options, wordings)
    copied = _copies(options, wordings, num_copies(len(prompts), options.copy_fraction))
    template = read_grader_prompt(options.grader_prompt)
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.candidates, options.seed)
    group = _group(options)
    engine = _engine(options.model, options.server, options.api_key_env, sampling, options, prompts, group)
    grading = None
    if options.grader is not None:
        server, key = options.grader_server, options.grader_api_key_env
        grader = _engine(options.grader, server, key, Sampling(MAX_NEW_TOKENS), options, [], group)
        grading = Grading(grader, template)
    read = [Path(path) for path in (*options.prompts, *options.texts, *options.copies)]
    return Job(
        options.output,
        prompts,
        engine,
        filters=Filters(options.scripts, [OPTIONAL[name] for name in options.kept], options.min_score),
        grading=grading,
        copies=copied,
        copy_fraction=options.copy_fraction,
        inputs=[*read, *engine.folders, *(grading.engine.folders if grading else ())],
        described=options.described(),
        group=group,
    )


def _prompts(options: Options, wordings: Wordings) -> list[Chat]:
    found = prompts_of_files(options.prompts)
    if not options.texts:
        return found
    forms, number = options.forms or FORMS, options.text_prompts
    return found + prompts_of_text(options.draw(options.texts, number), wordings, forms)


def _copies(options: Options, wordings: Wordings, number: int) -> list[tuple[Message, ...]]:
    if not options.copies:
        return []
    check_separate(options.copies, [*options.prompts, *options.texts])
    return copies(options.draw(options.copies, number), wordings) if number else []


def _group(options: Options) -> "Group | None":
    """Return the processes that share out the prompts, None if servers answer and grade."""
    if options.server and (options.grader is None or options.grader_server):
        return None
    from lepmerge.device import choose_device
    from lepmerge.training.processes import launched_group

    return launched_group(choose_device(options.device))


def _engine(
    model: str,
    server: str | None,
    key_variable: str | None,
    sampling: Sampling,
    options: Options,
    prompts: Sequence[Chat],
    group: "Group | None",
) -> Engine:
    """Return the engine of a model. A server must be reachable; a model on this machine must take the prompts.

    key_variable: environment variable with the server's key.
    """
    if server is not None:
        key = os.environ[key_variable] if key_variable else None
        engine = ServerEngine(base_url(server), model, sampling, options.concurrency, key)
        engine.check()
        return engine
    import torch

    from lepmerge.comparison.loading import load_model
    from lepmerge.generation.local import LocalEngine

    dtype = getattr(torch, options.dtype) if options.dtype else None
    local = LocalEngine(load_model(model, dtype=dtype, group=group), sampling, options.batch_size)
    local.check(prompts)
    return local
