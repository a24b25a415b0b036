"""What the model reads, word for word: `darumeru_golden/TASK.txt`, to be checked by eye.

The prompt is between ⟦ and ⟧; after → what is scored after it, or how it is continued. <s> is the begin token.

After a change that is meant: DARUMERU_GOLDEN=write python -m pytest tests/test_darumeru_prompts.py, then read the diff.
"""

import os
from pathlib import Path

import darumeru_reference as reference
import darumeru_setting
import pytest
from darumeru_setting import NAMES, load

GOLDEN = Path(__file__).with_name("darumeru_golden")
SETTINGS = {
    "completion format, 0 shots": (0, False),
    "completion format, 5 shots": (5, False),
    "chat, 0 shots": (0, True),
    "chat, 2 shots": (2, True),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("model")
    darumeru_setting.save_model(folder, darumeru_setting.byte_level(), context=8192)
    return HFLM(pretrained=str(folder), device="cpu")


@pytest.fixture(scope="module")
def tasks(model):
    return load(pretrained=model.tokenizer.name_or_path)


def requests(task, model, num_shots: int, chat: bool, **keywords) -> list:
    """Return the requests that the harness makes of a task's first document."""
    task.set_config("num_fewshot", num_shots)
    template = {"apply_chat_template": True, "chat_template": model.apply_chat_template} if chat else {}
    task.build_all_requests(limit=1, **{"fewshot_as_multiturn": True, **template, **keywords})
    return task.instances


def prompts(task, model, num_shots: int, chat: bool) -> str:
    """Return the prompts of the first document, begin token included, and what may or must follow them."""
    blocks: dict[str, list[str]] = {}
    for instance in requests(task, model, num_shots, chat):
        context, follows = instance.args
        text = model.tokenizer.decode(model.tok_encode(context), skip_special_tokens=False)
        if instance.request_type == "generate_until":
            follows = f"at most {follows['max_gen_toks']} tokens until {follows['until']}"
            assert instance.args[1]["do_sample"] is False
        else:
            follows = repr(str(follows))
        blocks.setdefault(text, []).append(follows)
    return "\n".join(f"⟦{text}⟧\n" + "".join(f"→ {line}\n" for line in follows) for text, follows in blocks.items())


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_the_golden_ones(tasks, model, name):
    parts = []
    for title, (num_shots, chat) in SETTINGS.items():
        if name != "sum_extractive" or num_shots == 0:  # the harness keeps it at 0 shots
            parts.append(f"=== {title}\n{prompts(tasks[name], model, num_shots, chat)}")
    text, path = "\n".join(parts), GOLDEN / f"{name}.txt"
    if os.environ.get("DARUMERU_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


# The same prompts from the rows, without the tasks


def messages(name: str, row: dict, *, shot: bool) -> tuple[str, str]:
    """Return the user's message of a row and the assistant's, with the answer if it is a shot."""
    if name.startswith("mmlu"):
        language = name[-2:]
        options = "\n".join(
            f"{letter}. {text}" for letter, text in zip("ABCD", row[f"choices_{language}"], strict=True)
        )
        user, opening, answer = f"{row[f'question_{language}']}\n{options}", "Ответ:", "ABCD"[row["answer"]]
        opening = {"ru": "Ответ:", "en": "Answer:"}[language]
    elif name == "rucola":
        user = (
            "Твоя задача определить приемлемость текста для русского языка с точки зрения синтаксиса, морфологии и "
            "семантики. Ответом должно служить одно число: 0 или 1, где 0 - предложение не приемлемо с точки зрения "
            f"русского языка, 1 - приемлемо.\nТекст: {row['sentence']}"
        )
        opening, answer = "Ответ:", row["label"]
    elif name == "sum_abstractive":
        text = " ".join(row["src_sents"])
        user = f"Напиши краткую аннотацию на русском языке к следующему тексту.\nТекст: {text}"
        opening, answer = "TL;DR:", " ".join(row["summary_sents"])
    else:
        user, bot = (message["content"].format(**row["inputs"]) for message in row["messages"])
        return user, bot  # the rows of `prompt` have their answers
    return user, f"{opening} {answer}" if shot else opening


SPLITS = {
    "rucola": ("rucola", "validation", "train"),
    "mmlu_ru": ("mmlu_nlpcoreteam", "test", "dev"),
    "mmlu_en": ("mmlu_nlpcoreteam", "test", "dev"),
    "sum_abstractive": ("daru_treeway_eval", "test", "prompt"),
}
HEADLINES = {
    "mmlu_ru": "Ниже приведены вопросы с множественным выбором (с ответами) по abstract algebra.\n\n",
    "mmlu_en": "The following are multiple choice questions (with answers) about abstract algebra.\n\n",
}


def completion(name: str, num_shots: int) -> str:
    """Return the prompt of the first row in the completion format."""
    config, test, train = SPLITS.get(name, (name, "test", "prompt"))
    row, shots = reference.rows(config, test)[0], reference.rows(config, train)
    if name.startswith("mmlu"):
        shots = [shot for shot in shots if shot["subject"] == row["subject"]][:num_shots]
    else:
        start = 29 if name == "rucola" else 0
        shots = list(reversed(shots[start : start + num_shots]))
    text = HEADLINES.get(name, "")
    for shot in shots:
        text += "\n".join(messages(name, shot, shot=True)) + "\n\n"
    return text + "\n".join(messages(name, row, shot=False))


WITH_SHOTS = [name for name in NAMES if name != "sum_extractive"]


@pytest.mark.parametrize("name", WITH_SHOTS)
@pytest.mark.parametrize("num_shots", [0, 1, 5])
def test_prompts_follow_from_the_rows(tasks, model, name, num_shots):
    assert requests(tasks[name], model, num_shots, False)[0].args[0] == completion(name, num_shots)


NEW_TOKENS = {"multiq": 64, "use": 64, "sum_abstractive": 512, "cp_sent_ru": 128, "cp_sent_en": 128}
NEW_TOKENS |= {"cp_para_ru": 1024, "cp_para_en": 1024}


@pytest.mark.parametrize("name", WITH_SHOTS)
def test_long_prompts_lose_the_farthest_shots_exactly_at_the_limit(model, name):
    folder = model.tokenizer.name_or_path
    task = load([f"darumeru_{name}"], pretrained=folder)[name]
    for num_fitting in (4, 1):
        fitting = completion(name, num_fitting)
        limit = len(model.tok_encode(fitting)) + NEW_TOKENS.get(name, 1)
        for context, expected in ((limit, fitting), (limit - 1, completion(name, num_fitting - 1))):
            task.config.metadata["max_length"] = context
            assert requests(task, model, 5, False)[0].args[0] == expected
    task.config.metadata["max_length"] = NEW_TOKENS.get(name, 1) + 1  # the question stays whatever its length is
    assert requests(task, model, 5, False)[0].args[0] == completion(name, 0)


def test_the_limit_is_that_of_the_model_and_of_the_arguments_for_generation(tmp_path, model):
    fitting = completion("use", 2)
    length = len(model.tok_encode(fitting))
    darumeru_setting.save_model(tmp_path, darumeru_setting.byte_level(), context=length + 64)
    task = load(["darumeru_use"], pretrained=str(tmp_path))["use"]
    assert requests(task, model, 5, False)[0].args[0] == fitting
    task.set_config("generation_kwargs", {"max_gen_toks": 65}, update=True)
    assert requests(task, model, 5, False)[0].args[0] == completion("use", 1)


def test_begin_tokens_count(tmp_path, model):
    fitting = completion("use", 2)
    length = len(model.tok_encode(fitting, add_special_tokens=False))
    keywords = {"pretrained": model.tokenizer.name_or_path, "max_length": length + 64}
    for add_bos_token, num_shots in ((None, 1), (True, 1), (False, 2)):
        task = load(["darumeru_use"], **keywords, add_bos_token=add_bos_token)["use"]
        assert requests(task, model, 5, False)[0].args[0] == completion("use", num_shots)


def test_long_chats_lose_the_farthest_shots_too(model, tasks):
    two = requests(tasks["rcb"], model, 2, True)[0].args[0]
    length = len(model.tok_encode(two))
    task = load(["darumeru_rcb"], pretrained=model.tokenizer.name_or_path, max_length=length + 1)["rcb"]
    assert requests(task, model, 6, True)[0].args[0] == two


def test_mmlu_takes_shots_of_the_same_subject(tasks):
    for document in tasks["mmlu_ru"].test_docs():
        text = tasks["mmlu_ru"].fewshot_context(document, 5)
        subject = document["subject"].replace("_", " ")
        assert text.count(subject) == 1 + 6 and text.startswith(
            HEADLINES["mmlu_ru"].replace("abstract algebra", subject)
        )


def test_parus_shows_both_orders(tasks, model):
    first, *_, last = requests(tasks["parus"], model, 2, False)
    row = reference.rows("parus")[0]["inputs"]
    assert f"1. {row['choice1']}\n2. {row['choice2']}" in first.args[0]
    assert f"1. {row['choice2']}\n2. {row['choice1']}" in last.args[0]
    shots = first.args[0].split("\n\n")[:-1]
    assert last.args[0].split("\n\n")[:-1] == shots and len(shots) == 2  # the shots stay as they are


def test_a_question_without_an_opening(tasks, model):
    task = tasks["multiq"]
    document = task.test_docs()[11]
    assert [message["role"] for message in document["messages"]] == ["user"]
    assert task.fewshot_context(document, 0) == document["messages"][0]["content"] + "\n"
    chat = task.fewshot_context(document, 0, apply_chat_template=True, chat_template=model.apply_chat_template)
    assert chat == f"<s><|user|>\n{document['messages'][0]['content']}<|end|>\n<|assistant|>\n"


def test_a_system_message_and_shots_in_one_message(tasks, model):
    task = tasks["rcb"]
    base = requests(task, model, 1, False, system_instruction="Будь краток.")[0].args[0]
    assert base == "Будь краток.\n\n" + completion("rcb", 1)
    chat = requests(task, model, 1, True, system_instruction="Будь краток.", fewshot_as_multiturn=False)[0].args[0]
    shots, question = completion("rcb", 1).rsplit("\n", 1)
    assert chat == f"<s><|system|>\nБудь краток.<|end|>\n<|user|>\n{shots}<|end|>\n<|assistant|>\n{question}"


def test_a_template_that_closes_messages_is_an_error_where_sentences_are_scored(tasks):
    from darumeru_tasks.errors import DarumeruError

    def closing(messages, add_generation_prompt):
        return "".join(f"{message['content']}<|end|>" for message in messages)

    task = tasks["sum_extractive"]
    with pytest.raises(DarumeruError, match="does not leave the assistant's message open"):
        task.fewshot_context(task.test_docs()[0], 0, apply_chat_template=True, chat_template=closing)
