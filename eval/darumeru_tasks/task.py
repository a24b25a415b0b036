"""The tasks: a data set's documents → requests to the model → the values of its metrics."""

from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask, eval_logger

from darumeru_tasks import metrics, statistics
from darumeru_tasks.documents import Document, documents
from darumeru_tasks.errors import DarumeruError
from darumeru_tasks.harness import Choice, Generated, Sentence, extend_harness
from darumeru_tasks.prompts import Format, choose_shots, completion, with_headline
from darumeru_tasks.rows import Documents, Source, local_data, read_rows
from darumeru_tasks.statistics import Statistic
from darumeru_tasks.subjects import SUBJECTS
from darumeru_tasks.tokens import ModelTokens, model_tokens

Aggregation = Callable[[list[Any]], float]
READY: dict[str, dict[str, Documents]] = {}
"""The documents of tasks that were checked and will be built next."""


class DarumeruTask(ConfigurableTask):
    """A data set of the benchmark. Its YAML file has the harness's keys, and under `darumeru` what is our own:

    kind: of its rows, a key of documents.KINDS. choices: the answers, where there are a few. statistic: the name of
    the score in statistics.py. folder: its name in a folder of local data, if not dataset_name. first_shot: the row
    of the few-shot split where the shots begin. nearest_first: whether the first shot stands nearest to the question.
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
        self.options = read_options(config.pop("darumeru"))
        self._few_shots_short = False
        self.check_packages()
        super().__init__(data_dir, cache_dir, download_mode, config)

    def check_packages(self) -> None:
        """Raise DarumeruError if a package is missing that only the scores need, before anything is generated."""

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.dataset = READY.pop(self.config.task, None) or load(self.config, self.options)

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
        """Return the prompt: the shots, as many as fit into the model's context, and the question."""
        return self.render(doc, num_fewshot, prompt_format(*arguments, **keywords))

    def render(self, doc: Document, num_fewshot: int, format: Format) -> str:
        available = self.dataset[self.config.fewshot_split] if num_fewshot else []
        shots = choose_shots(available, doc, num_fewshot, nearest_first=self.options["nearest_first"])
        if len(shots) < num_fewshot and not self._few_shots_short:
            self._few_shots_short = True
            eval_logger.warning("%s: there are only %d of %d shots", self.config.task, len(shots), num_fewshot)
        while True:
            *shown, question = with_headline([*shots, doc])
            text = format.prompt(shown, question)
            if not shots or self.tokens.count(text) <= self.tokens.context - self.num_new_tokens:
                return text
            del shots[0 if self.options["nearest_first"] else -1]

    @property
    def num_new_tokens(self) -> int:
        """The number of tokens that the model may add to a prompt."""
        return 1

    def build_all_requests(self, *, tokenizer_name: str = "", **keywords: Any) -> None:
        """Build the requests; a cache of them is told apart by the tokenizer and the data too."""
        extend_harness()
        if keywords.get("cache_requests"):
            metadata = self.config.metadata or {}
            tokens = self.tokens
            parts = [tokens.tokenizer_name, tokens.revision, tokens.context, local_data(metadata), self.VERSION]
            tokenizer_name = f"{tokenizer_name}-{'-'.join(map(str, parts))}"
        super().build_all_requests(tokenizer_name=tokenizer_name, **keywords)

    def process_results(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        if "bypass" in self._metric_fn_list:  # lm_eval --predict_only
            return {"bypass": 999}
        return self.values(doc, results)

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        """Return a value for each metric of `aggregation`, from the model's answers to the document's requests."""
        raise NotImplementedError


class ChoiceTask(DarumeruTask):
    """The answer is the choice whose token is the most probable one; of equal ones the first."""

    def aggregation(self) -> dict[str, Aggregation]:
        part = {"accuracy_f1": statistics.f1_macro, "accuracy_matthews": statistics.matthews}
        name = self.options["statistic"]
        score: dict[str, Aggregation] = {"score": Statistic(getattr(statistics, name)) if name in part else mean}
        if name not in part:
            return score
        return {**score, "acc": mean, "f1" if name == "accuracy_f1" else "mcc": Statistic(part[name])}

    def construct_requests(self, doc: Document, ctx: str, **keywords: Any) -> list[Instance]:
        return self.choice_requests(doc, ctx, keywords)

    def choice_requests(self, doc: Document, ctx: str, keywords: dict[str, Any], first: int = 0) -> list[Instance]:
        texts = [f" {choice}" for choice in self.options["choices"]]
        metadata = keywords.get("metadata", (None, None, None))
        return [
            Instance("loglikelihood", doc, (ctx, Choice(texts, index)), first + index, metadata)
            for index in range(len(texts))
        ]

    def chosen(self, results: list[tuple[float, bool]]) -> str:
        likelihoods = [likelihood for likelihood, _ in results]
        return self.options["choices"][likelihoods.index(max(likelihoods))]

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        chosen = self.chosen(results)
        right = float(doc["target"].startswith(chosen))
        gold = next(choice for choice in self.options["choices"] if doc["target"].startswith(choice))
        values = {"score": (gold, chosen), "acc": right, "f1": (gold, chosen), "mcc": (gold, chosen)}
        if self.options["statistic"] == "accuracy":
            values["score"] = right
        return {name: values[name] for name in self.aggregation()}


class BothOrdersTask(ChoiceTask):
    """PARus: a question is answered right only if it is with both orders of its two alternatives."""

    def aggregation(self) -> dict[str, Aggregation]:
        return {"score": Statistic(statistics.all_orders, by_group=True), "acc": mean}

    def fewshot_context(self, doc: Document, num_fewshot: int, *arguments: Any, **keywords: Any) -> Any:
        format = prompt_format(*arguments, **keywords)
        return [self.render(order, num_fewshot, format) for order in (doc, self.exchanged(doc))]

    def exchanged(self, doc: Document) -> Document:
        return {**doc, "messages": doc["exchanged"]}

    def construct_requests(self, doc: Document, ctx: str | list[str], **keywords: Any) -> list[Instance]:
        contexts = ctx if isinstance(ctx, list) else [ctx, self.doc_to_text(self.exchanged(doc))]
        first, second = (self.choice_requests(doc, text, keywords, place * 2) for place, text in enumerate(contexts))
        return first + second

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        other = {"1": "2", "2": "1"}[doc["target"]]
        right = [self.chosen(results[:2]) == doc["target"], self.chosen(results[2:]) == other]
        return {"score": (doc["id"], float(all(right))), "acc": sum(right) / 2}


class SubjectsTask(ChoiceTask):
    """MMLU: the mean over categories of subjects."""

    def aggregation(self) -> dict[str, Aggregation]:
        return {"score": Statistic(statistics.category_mean), "acc": mean}

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        right = float(doc["target"] == self.chosen(results))
        return {"score": (SUBJECTS.index(doc["subject"]), right), "acc": right}


class GenerationTask(DarumeruTask):
    """The model writes the answer: up to a line's end in the completion format, up to the end token in a chat."""

    @property
    def num_new_tokens(self) -> int:
        return int(self.config.generation_kwargs["max_gen_toks"])

    def construct_requests(self, doc: Document, ctx: str, **keywords: Any) -> Instance:
        arguments = dict(self.config.generation_kwargs)
        if keywords.get("apply_chat_template") and arguments["until"] == LINE_END:
            arguments["until"] = []
        metadata = keywords.get("metadata", (None, None, None))
        return Instance("generate_until", doc, (ctx, arguments), 0, metadata)


LINE_END = ["\n", "\n\n"]
"""`until` of the YAML files; another one, of `--gen_kwargs`, is kept in chats too."""


class AnswerTask(GenerationTask):
    """MultiQ: the words of one of the golds."""

    def aggregation(self) -> dict[str, Aggregation]:
        return {"score": mean, "f1": mean, "em": mean}

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        f1, em = (
            max(measure(str(results[0]), gold) for gold in doc["golds"])
            for measure in (metrics.squad_f1, metrics.squad_exact_match)
        )
        return {"score": (f1 + em) / 2, "f1": f1, "em": em}


class ExamTask(GenerationTask):
    """USE: grade points of the Unified State Exam."""

    def aggregation(self) -> dict[str, Aggregation]:
        return {"score": Statistic(statistics.exam_grade, by_group=True)}

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        points = metrics.use_points(str(results[0]), doc["target"], kind=doc["type"], id_task=doc["id_task"])
        return {"score": (doc["variant"], points)}


class SummaryTask(GenerationTask):
    """DaruSum, abstractive: ROUGE of lemmas."""

    def check_packages(self) -> None:
        metrics.rouge_scorer()

    def aggregation(self) -> dict[str, Aggregation]:
        return dict.fromkeys(("score", "score_recall", "rouge1", "rouge2"), mean)

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        rouge = metrics.rouge(str(results[0]), doc["target"])
        return {
            "score": (rouge["rouge1"] + rouge["rouge2"]) / 2,
            "score_recall": (rouge["rouge1_recall"] + rouge["rouge2_recall"]) / 2,
            "rouge1": rouge["rouge1"],
            "rouge2": rouge["rouge2"],
        }


class SentencesTask(DarumeruTask):
    """DaruSum, extractive: the sentences that the model finds most probable as «most important» ones."""

    def fewshot_context(self, doc: Document, num_fewshot: int, *arguments: Any, **keywords: Any) -> Any:
        return prompt_format(*arguments, **keywords).opened(doc["messages"], doc["sentences"])

    def construct_requests(self, doc: Document, ctx: str, **keywords: Any) -> list[Instance]:
        metadata = keywords.get("metadata", (None, None, None))
        return [
            Instance("loglikelihood", doc, (ctx, Sentence(doc["sentences"], index)), index, metadata)
            for index in range(len(doc["sentences"]))
        ]

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        # All have the same number of tokens: the sums rank as the means do.
        return {"score": metrics.r_precision([likelihood for likelihood, _ in results], doc["gold"])}


class CopyTask(GenerationTask):
    """DaruCopy: the text of the prompt, once more. The statistic says by what: `length` or `characters`."""

    def aggregation(self) -> dict[str, Aggregation]:
        both: dict[str, Aggregation] = {
            "symbol_per_token": Statistic(statistics.ratio),
            "exact_ids": mean,
        }
        if self.options["statistic"] == "characters":
            return {"score": mean, "score_source": mean, **both}
        return {"score": mean, **both}

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        text, source = str(results[0]), doc["source"]
        ids = results[0].ids if isinstance(results[0], Generated) else None
        if ids is None:  # the backend gave a text only
            num_generated = len(self.tokens.tokenizer.encode(text, add_special_tokens=False))
        else:
            num_generated = self.tokens.count_generated(ids, text)
        values: dict[str, Any] = {
            "symbol_per_token": (len(text), num_generated),
            "exact_ids": float(ids is not None),
        }
        if self.options["statistic"] == "characters":
            matched = metrics.matched_characters(source, text)
            values["score"] = metrics.copied(matched, len(text))
            values["score_source"] = metrics.copied(matched, len(source)) if text else 0.0
        else:
            num_source = min(self.tokens.count_source(source), self.num_new_tokens)
            values["score"] = metrics.length_ratio(num_generated, num_source)
        return values

    def build_all_requests(self, **keywords: Any) -> None:
        assert self.tokens.tokenizer  # before anything is generated: the score needs it
        super().build_all_requests(**keywords)


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


def read_options(block: dict[str, Any]) -> dict[str, Any]:
    """Return the `darumeru` block of a YAML file with its defaults."""
    defaults = {
        "kind": "row",
        "choices": None,
        "statistic": "accuracy",
        "folder": None,
        "first_shot": 0,
        "nearest_first": True,
    }
    unknown = sorted(block.keys() - defaults.keys())
    if unknown:
        raise DarumeruError(f"a task's `darumeru` block has {', '.join(defaults)}; it cannot have {unknown}")
    return {**defaults, **block}


def load(config: Any, options: dict[str, Any]) -> dict[str, Documents]:
    """Return the documents of a task's splits, as its YAML file names them.

    Raises:
        DarumeruError: the data is missing, or a row is wrong.
    """
    folder = local_data(config["metadata"] or {})
    source = Source(config["dataset_path"], config["dataset_name"], options["folder"] or config["dataset_name"])
    kind, choices = options["kind"], options["choices"]
    split = config["test_split"]
    loaded = {split: documents(read_rows(source, split, folder), kind, shots=False, choices=choices)}
    if shots := config["fewshot_split"]:
        rows = read_rows(source, shots, folder)[options["first_shot"] :]
        loaded[shots] = documents(rows, kind, shots=True, choices=choices)
    return loaded
