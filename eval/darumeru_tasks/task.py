"""The base class of all tasks: documents, prompts and requests."""

from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.instance import Instance, OutputType
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask, eval_logger

from darumeru_tasks.documents import Document, documents
from darumeru_tasks.errors import DarumeruError
from darumeru_tasks.harness import extend_harness
from darumeru_tasks.prompts import Format, choose_shots, completion, prompt_format, with_headline
from darumeru_tasks.rows import Documents, local_data, read_rows, source_of
from darumeru_tasks.tokens import ModelTokens, model_tokens

Aggregation = Callable[[list[Any]], float]
READY: dict[str, dict[str, Documents]] = {}
"""Task name → documents of tasks that check.py has built. The harness builds these tasks again later."""
OPTIONS = {
    "kind": "row",
    "choices": None,
    "statistic": "accuracy",
    "folder": None,
    "first_shot": 0,
    "nearest_first": True,
}


class DarumeruTask(ConfigurableTask):
    """A data set of the benchmark. Its YAML file has the harness's keys, and under `darumeru` these additional keys:

    kind: kind of its rows, a key of documents.KINDS. choices: the possible answers, for tasks with choices. statistic:
    name of the score in statistics.py or, for copying, `length` or `characters`. folder: its name in a folder of local
    data, if not dataset_name. first_shot: the row of the few-shot split with the first shot. nearest_first: whether the
    first shot is closest to the question.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        cache_dir: str | None = None,
        download_mode: Any = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        """
        Raises:
            DarumeruError: the data or a package is missing, or a row is wrong.
        """
        config = {key: value for key, value in (config or {}).items() if key != "class"}
        block = config.pop("darumeru")
        if unknown := sorted(block.keys() - OPTIONS.keys()):
            raise DarumeruError(f"{config['task']}: a `darumeru` block has {', '.join(OPTIONS)}; not {unknown}")
        self.options = {**OPTIONS, **block}
        self._warned_of_few_shots = False
        self.check_packages()
        super().__init__(data_dir, cache_dir, download_mode, config)

    def check_packages(self) -> None:
        """Raise DarumeruError if a package for the scores is missing. This is checked before anything is generated."""

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.dataset = READY.pop(self.config.task, None) or load(self.config, self.options)
        metadata = self.config.metadata or {}
        versions = {split: documents.version for split, documents in self.dataset.items()}
        is_local = local_data(metadata) is not None
        version = {"data_sha256": versions} if is_local else {"data_commit": versions[self.config.test_split]}
        self.config.metadata = {**metadata, **version}

    @property
    def tokens(self) -> ModelTokens:
        return model_tokens(self.config.metadata or {})

    def aggregation(self) -> dict[str, Aggregation]:
        return {"score": mean}

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self.aggregation(), True)

    def doc_to_text(self, doc: Document, doc_to_text: Any = None) -> str:
        return completion(doc["messages"])

    def doc_to_target(self, doc: Mapping[str, Any], doc_to_target: Any = None) -> str:
        return doc["target"]

    def doc_to_choice(self, doc: Document, doc_to_choice: Any = None) -> list[str]:
        return list(self.options["choices"])

    def fewshot_context(self, doc: Document, num_fewshot: int, *arguments: Any, **keywords: Any) -> Any:
        """Return the prompt: as many shots as fit into the model's context, and the question."""
        return self.render(doc, num_fewshot, prompt_format(*arguments, **keywords))

    def render(self, doc: Document, num_fewshot: int, format: Format) -> str:
        available = self.dataset[self.config.fewshot_split] if num_fewshot else []
        shots = choose_shots(available, doc, num_fewshot, nearest_first=self.options["nearest_first"])
        if len(shots) < num_fewshot and not self._warned_of_few_shots:
            self._warned_of_few_shots = True
            eval_logger.warning("%s: there are only %d of %d shots", self.config.task, len(shots), num_fewshot)
        while True:
            *shown, question = with_headline([*shots, doc])
            text = format.prompt(shown, question)
            if not shots or self.tokens.count(text) <= self.tokens.context - self.num_new_tokens:
                return text
            del shots[0 if self.options["nearest_first"] else -1]

    @property
    def num_new_tokens(self) -> int:
        """The maximum number of tokens that the model adds to a prompt."""
        return 1

    def build_all_requests(self, *, tokenizer_name: str = "", **keywords: Any) -> None:
        """Build the requests. The key of their cache also includes tokenizer, data and generation settings."""
        extend_harness()
        if keywords.get("cache_requests"):
            tokens, config = self.tokens, self.config
            metadata = config.metadata or {}
            data = metadata.get("data_commit") or metadata.get("data_sha256")
            parts = [tokens.tokenizer_name, tokens.revision, tokens.context, data, self.VERSION]
            tokenizer_name = "-".join(map(str, [tokenizer_name, *parts, config.generation_kwargs]))
        super().build_all_requests(tokenizer_name=tokenizer_name, **keywords)

    def request(
        self, kind: OutputType, doc: Document, arguments: tuple[Any, ...], index: int, keywords: dict[str, Any]
    ) -> Instance:
        """Return a request to the model. keywords: the keywords that the harness passed to `construct_requests`."""
        return Instance(kind, doc, arguments, index, keywords.get("metadata", (None, None, None)))

    def process_results(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        if "bypass" in self._metric_fn_list:  # lm_eval --predict_only
            return {"bypass": 999}
        return self.values(doc, results)

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        """Return metric → value of this document. results: the model's answers to the document's requests."""
        raise NotImplementedError


def load(config: Any, options: dict[str, Any]) -> dict[str, Documents]:
    """Return the documents of the splits that the task's YAML file names.

    Raises:
        DarumeruError: the data is missing, or a row is wrong.
    """
    path, name, kind, choices = config["dataset_path"], config["dataset_name"], options["kind"], options["choices"]
    source = source_of(path, name, options["folder"] or name, config["metadata"] or {})

    def split(name: str, *, shots: bool, first: int = 0) -> Documents:
        rows, version = read_rows(source, name)
        made = documents(rows[first:], kind, shots=shots, choices=choices)
        made.version = version
        return made

    loaded = {config["test_split"]: split(config["test_split"], shots=False)}
    if shots := config["fewshot_split"]:
        loaded[shots] = split(shots, shots=True, first=options["first_shot"])
    return loaded
