"""Tasks in which the model generates the answer."""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean

from darumeru_tasks import metrics, statistics
from darumeru_tasks.documents import Document
from darumeru_tasks.errors import DarumeruError
from darumeru_tasks.harness import Generated
from darumeru_tasks.statistics import Statistic
from darumeru_tasks.task import Aggregation, DarumeruTask
from darumeru_tasks.tokens import names_model

LINE_END = ["\n", "\n\n"]
"""`until` in the YAML files. It is dropped in chats; a different one from `--gen_kwargs` is kept there too."""


class GenerationTask(DarumeruTask):
    """The model generates the answer, up to a line end in the completion format, or up to the end token in a chat."""

    @property
    def num_new_tokens(self) -> int:
        return int(self.config.generation_kwargs["max_gen_toks"])

    def build_all_requests(self, **keywords: Any) -> None:
        if names_model(self.config.metadata or {}) and self.num_new_tokens >= self.tokens.context:
            raise DarumeruError(
                f"{self.config.task} writes up to {self.num_new_tokens} tokens, but the model's context has "
                f"{self.tokens.context}: give --model_args max_length=N if the model can do more, or "
                "--gen_kwargs max_gen_toks=N for shorter answers"
            )
        super().build_all_requests(**keywords)

    def construct_requests(self, doc: Document, ctx: Any, **keywords: Any) -> Instance:
        arguments = dict(self.config.generation_kwargs)
        if keywords.get("apply_chat_template") and arguments["until"] == LINE_END:
            arguments["until"] = []
        return self.request("generate_until", doc, (ctx, arguments), 0, keywords)


class AnswerTask(GenerationTask):
    """MultiQ: the answer is compared with each gold answer, and the best score counts."""

    def aggregation(self) -> dict[str, Aggregation]:
        return {"score": mean, "f1": mean, "em": mean}

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        f1, em = (
            max(measure(results[0], gold) for gold in doc["golds"])
            for measure in (metrics.squad_f1, metrics.squad_exact_match)
        )
        return {"score": (f1 + em) / 2, "f1": f1, "em": em}


class ExamTask(GenerationTask):
    """USE: points of the Unified State Exam."""

    def aggregation(self) -> dict[str, Aggregation]:
        return {"score": Statistic(statistics.exam_grade, by_group=True)}

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        points = metrics.use_points(results[0], doc["target"], kind=doc["type"], id_task=doc["id_task"])
        return {"score": (doc["variant"], points)}


class SummaryTask(GenerationTask):
    """DaruSum, abstractive: ROUGE on lemmas."""

    def check_packages(self) -> None:
        metrics.rouge_scorer()

    def aggregation(self) -> dict[str, Aggregation]:
        return dict.fromkeys(("score", "score_recall", "rouge1", "rouge2"), mean)

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        rouge = metrics.rouge(results[0], doc["target"])
        return {
            "score": (rouge["rouge1"] + rouge["rouge2"]) / 2,
            "score_recall": (rouge["rouge1_recall"] + rouge["rouge2_recall"]) / 2,
            "rouge1": rouge["rouge1"],
            "rouge2": rouge["rouge2"],
        }


class CopyTask(GenerationTask):
    """DaruCopy: the model copies the text of the prompt. The statistic compares `length` or `characters`.

    exact_ids: 1.0 if the backend returned the generated ids. Otherwise 0.0: the tokens are then counted by tokenizing
    the text again, which hides the differences that `length` measures.
    """

    def aggregation(self) -> dict[str, Aggregation]:
        scores = ("score", "score_source") if self.options["statistic"] == "characters" else ("score",)
        return {
            **dict.fromkeys(scores, mean),
            "symbol_per_token": Statistic(statistics.ratio),
            "exact_ids": mean,
        }

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        text, source = results[0], doc["target"]
        exact = isinstance(text, Generated)
        num_generated = self.tokens.count_generated(text.ids, text) if exact else self.tokens.count_text(text)
        values = {"symbol_per_token": (len(text), num_generated), "exact_ids": float(exact)}
        if self.options["statistic"] == "characters":
            values["score"], values["score_source"] = metrics.copied(source, text)
        else:
            num_source = min(self.tokens.count_source(source), self.num_new_tokens)
            values["score"] = metrics.length_ratio(num_generated if text.strip() else 0, num_source)
        return values

    def build_all_requests(self, **keywords: Any) -> None:
        assert self.tokens.tokenizer  # the score needs it; fail before anything is generated
        super().build_all_requests(**keywords)
