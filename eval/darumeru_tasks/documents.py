"""Convert the rows of each data set to documents: messages, the right answer, and values that the score needs.

Every document has `messages` ({role, content}) and `target`. The last message is the assistant's and is incomplete: the
model continues it. A shot is a document whose last message contains the answer.
"""

import re
from collections.abc import Callable
from typing import Any

from darumeru_tasks.errors import DarumeruError
from darumeru_tasks.rows import Documents, Row
from darumeru_tasks.subjects import SUBJECTS

Document = dict[str, Any]
Message = dict[str, str]
ROLES = {"bot": "assistant", "assistant": "assistant", "user": "user", "system": "system"}
HEADLINES = {
    "ru": "Ниже приведены вопросы с множественным выбором (с ответами) по {subject}.\n\n",
    "en": "The following are multiple choice questions (with answers) about {subject}.\n\n",
}
ANSWERS = {"ru": "Ответ:", "en": "Answer:"}
ACCEPTABILITY = (
    "Твоя задача определить приемлемость текста для русского языка с точки зрения синтаксиса, морфологии и семантики. "
    "Ответом должно служить одно число: 0 или 1, где 0 - предложение не приемлемо с точки зрения русского языка, "
    "1 - приемлемо.\nТекст: {sentence}"
)
ANNOTATION = "Напиши краткую аннотацию на русском языке к следующему тексту.\nТекст: {text}"
IMPORTANT = "Твоя задача определить наиболее важные предложения.\nТекст: {text}"
IMPORTANT_SENTENCES = "Наиболее важные предложения статьи:"
MAX_SUMMARIES = 500


def documents(rows: list[Row], kind: str, *, shots: bool, choices: list[str] | None = None) -> Documents:
    """Return the documents of a split.

    kind: a key of KINDS. shots: include the answers, because the documents are shown as examples. choices: the target
    must equal one of these or begin with one, and then becomes it.

    Raises:
        DarumeruError: a row lacks a key or has a wrong value; the message names the row.
    """
    made = Documents()
    for place, row in rows[:MAX_SUMMARIES] if kind.startswith("sum_") else rows:
        try:
            document = KINDS[kind](row, shots)
        except KeyError as error:
            raise DarumeruError(f"{place}: {error.args[0]!r} is missing") from error
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise DarumeruError(f"{place}: the row does not fit this data set: {error}") from error
        if choices:
            begun = [choice for choice in choices if re.match(rf"{choice}\b", document["target"])]
            if not begun:
                answers = ", ".join(choices)
                raise DarumeruError(f"{place}: the answer {document['target']!r} is not one of the choices {answers}")
            document["target"] = begun[0]
        made.append(document)
    return made


def _row(row: dict[str, Any], shots: bool) -> Document:
    """Convert a row that contains its own messages."""
    return {
        "messages": _filled(row["messages"], row["inputs"]),
        "target": _text(row["outputs"]),
        "meta": dict(row["meta"] or {}),
    }


def _filled(messages: list[Message], inputs: dict[str, Any]) -> list[Message]:
    roles = [message["role"] for message in messages]
    if not roles or not set(roles) <= ROLES.keys():
        raise ValueError(f"messages have the roles {roles}, not one or more of {', '.join(ROLES)}")
    return [{"role": ROLES[message["role"]], "content": message["content"].format(**inputs)} for message in messages]


def _text(value: Any) -> str:
    if not isinstance(value, str | int):
        raise TypeError(f"the answer is a {type(value).__name__}, not a text")
    return str(value)


def _texts(row: dict[str, Any], key: str) -> list[str]:
    if not isinstance(row[key], list) or not all(isinstance(text, str) for text in row[key]):
        raise TypeError(f"{key} is not a list of texts")
    return row[key]


def _multiq(row: dict[str, Any], shots: bool) -> Document:
    golds = [output["segment"] for output in row["outputs"]]
    if not golds or not all(isinstance(gold, str) for gold in golds):
        raise ValueError("outputs is a list of objects with the text `segment`, at least one")
    return {**_row({**row, "outputs": golds[0]}, shots), "golds": golds}


def _parus(row: dict[str, Any], shots: bool) -> Document:
    """Convert a PARus question, and add a copy with both alternatives exchanged."""
    inputs = row["inputs"]
    exchanged = {**inputs, "choice1": inputs["choice2"], "choice2": inputs["choice1"]}
    document = _row(row, shots)
    return {**document, "id": str(row["meta"]["id"]), "exchanged": _filled(row["messages"], exchanged)}


def _use(row: dict[str, Any], shots: bool) -> Document:
    meta = row["meta"]
    return {**_row(row, shots), **{key: str(meta[key]) for key in ("id_task", "type", "variant")}}


def _copy(row: dict[str, Any], shots: bool) -> Document:
    return _row({**row, "outputs": row["inputs"]["text"]}, shots)


def _rucola(row: dict[str, Any], shots: bool) -> Document:
    if not isinstance(row["sentence"], str):
        raise TypeError("sentence is not a text")
    return _question(ACCEPTABILITY.format(sentence=row["sentence"]), "Ответ:", _text(row["label"]), shots)


def _mmlu(language: str) -> Callable[[dict[str, Any], bool], Document]:
    def document(row: dict[str, Any], shots: bool) -> Document:
        if row["subject"] not in SUBJECTS:
            raise ValueError(f"subject {row['subject']!r} is not one of MMLU's 57")
        options = _texts(row, f"choices_{language}")
        if len(options) != 4 or row["answer"] not in range(4):
            raise ValueError(f"{len(options)} choices_{language} and the answer {row['answer']!r}, not 4 and 0 to 3")
        lines = [row[f"question_{language}"], *(f"{name}. {text}" for name, text in zip("ABCD", options, strict=True))]
        made = _question("\n".join(lines), ANSWERS[language], "ABCD"[row["answer"]], shots)
        headline = HEADLINES[language].format(subject=row["subject"].replace("_", " "))
        return {**made, "subject": row["subject"], "headline": headline}

    return document


def _sum_abstractive(row: dict[str, Any], shots: bool) -> Document:
    text, summary = (" ".join(_texts(row, key)) for key in ("src_sents", "summary_sents"))
    return _question(ANNOTATION.format(text=text), "TL;DR:", summary, shots)


def _sum_extractive(row: dict[str, Any], shots: bool) -> Document:
    sentences, indices = _texts(row, "src_sents"), row["extractive_summary"]
    if not sentences or not isinstance(indices, list) or any(index not in range(len(sentences)) for index in indices):
        raise ValueError(f"extractive_summary {indices} must be a list of indices of the {len(sentences)} src_sents")
    gold = sorted(set(indices))
    document = _question(IMPORTANT.format(text=" ".join(sentences)), IMPORTANT_SENTENCES, "", False)
    texts = [f"{IMPORTANT_SENTENCES} {sentence}" for sentence in sentences]
    return {**document, "target": " ".join(map(str, gold)), "sentences": texts, "gold": gold}


def _question(question: str, opening: str, target: str, shots: bool) -> Document:
    answer = f"{opening} {target}" if shots else opening
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "target": target}


KINDS: dict[str, Callable[[dict[str, Any], bool], Document]] = {
    "row": _row,
    "multiq": _multiq,
    "parus": _parus,
    "use": _use,
    "copy": _copy,
    "rucola": _rucola,
    "mmlu_ru": _mmlu("ru"),
    "mmlu_en": _mmlu("en"),
    "sum_abstractive": _sum_abstractive,
    "sum_extractive": _sum_extractive,
}
