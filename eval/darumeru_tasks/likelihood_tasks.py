"""Tasks that compare the likelihood of texts: choices and sentences."""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean

from darumeru_tasks import metrics, statistics
from darumeru_tasks.documents import Document
from darumeru_tasks.harness import Choice, Sentence
from darumeru_tasks.prompts import prompt_format
from darumeru_tasks.statistics import Statistic
from darumeru_tasks.subjects import SUBJECTS
from darumeru_tasks.task import Aggregation, DarumeruTask

SECOND = {"accuracy_f1": ("f1", statistics.f1_macro), "accuracy_matthews": ("mcc", statistics.matthews)}
"""The second metric of scores that are the mean of the accuracy and another metric."""


class ChoiceTask(DarumeruTask):
    """The answer is the choice with the most probable token. Of equally probable ones, it is the first."""

    def aggregation(self) -> dict[str, Aggregation]:
        statistic = self.options["statistic"]
        if statistic == "accuracy":
            return {"score": mean}
        name, function = SECOND[statistic]
        return {"score": Statistic(getattr(statistics, statistic)), "acc": mean, name: Statistic(function)}

    def construct_requests(self, doc: Document, ctx: Any, **keywords: Any) -> list[Instance]:
        return self.choice_requests(doc, ctx, keywords)

    def choice_requests(self, doc: Document, ctx: str, keywords: dict[str, Any], first: int = 0) -> list[Instance]:
        texts = [f" {choice}" for choice in self.options["choices"]]
        return [
            self.request("loglikelihood", doc, (ctx, Choice(texts, index)), first + index, keywords)
            for index in range(len(texts))
        ]

    def chosen(self, results: list[tuple[float, bool]]) -> str:
        likelihoods = [likelihood for likelihood, _ in results]
        return self.options["choices"][likelihoods.index(max(likelihoods))]

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        pair = (doc["target"], self.chosen(results))
        right = float(pair[0] == pair[1])
        if self.options["statistic"] == "accuracy":
            return {"score": right}
        return {**dict.fromkeys(self.aggregation(), pair), "acc": right}


class BothOrdersTask(ChoiceTask):
    """PARus: a question counts as right only if the answers to both orders of its two alternatives are right.

    A document makes the requests for both orders, so that a limit on documents never separates them.
    """

    def aggregation(self) -> dict[str, Aggregation]:
        return {"score": Statistic(statistics.all_orders, by_group=True), "acc": mean}

    def fewshot_context(self, doc: Document, num_fewshot: int, *arguments: Any, **keywords: Any) -> Any:
        format = prompt_format(*arguments, **keywords)
        return [self.render(order, num_fewshot, format) for order in (doc, exchanged(doc))]

    def construct_requests(self, doc: Document, ctx: Any, **keywords: Any) -> list[Instance]:
        contexts = ctx if isinstance(ctx, list) else [ctx, self.doc_to_text(exchanged(doc))]
        first, second = (self.choice_requests(doc, text, keywords, place * 2) for place, text in enumerate(contexts))
        return first + second

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        other = {"1": "2", "2": "1"}[doc["target"]]
        right = [self.chosen(results[:2]) == doc["target"], self.chosen(results[2:]) == other]
        return {"score": (doc["id"], float(all(right))), "acc": sum(right) / 2}


def exchanged(doc: Document) -> Document:
    return {**doc, "messages": doc["exchanged"]}


class SubjectsTask(ChoiceTask):
    """MMLU: the mean over the categories of subjects."""

    def aggregation(self) -> dict[str, Aggregation]:
        return {"score": Statistic(statistics.category_mean), "acc": mean}

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        right = float(doc["target"] == self.chosen(results))
        return {"score": (SUBJECTS.index(doc["subject"]), right), "acc": right}


class SentencesTask(DarumeruTask):
    """DaruSum, extractive: the sentences that are most probable as the «most important» ones."""

    def fewshot_context(self, doc: Document, num_fewshot: int, *arguments: Any, **keywords: Any) -> Any:
        return prompt_format(*arguments, **keywords).before_answer(doc["messages"])

    def construct_requests(self, doc: Document, ctx: Any, **keywords: Any) -> list[Instance]:
        return [
            self.request("loglikelihood", doc, (ctx, Sentence(doc["sentences"], index)), index, keywords)
            for index in range(len(doc["sentences"]))
        ]

    def values(self, doc: Document, results: list[Any]) -> dict[str, Any]:
        # All have the same number of tokens, so sums and means give the same ranking.
        return {"score": metrics.r_precision([likelihood for likelihood, _ in results], doc["gold"])}
