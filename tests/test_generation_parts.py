"""The parts of lepmerge generate: filters, scores, ranking, passages, wordings, copies."""

import json
import runpy
from pathlib import Path

import generation
import pico
import pytest

from lepmerge.chats import Chat
from lepmerge.commands.generate import generate as command_of_generate
from lepmerge.errors import GenerationError
from lepmerge.generation.copies import copies, num_copies
from lepmerge.generation.engine import Answer
from lepmerge.generation.filters import CUT, Filters, repeated_fraction, script_fraction
from lepmerge.generation.grader import grading_request, read_grader_prompt, score_of
from lepmerge.generation.passages import FORMS, beginning, drawn_passages, passages, read_wordings
from lepmerge.generation.prompts import prompts_of_files, prompts_of_text
from lepmerge.generation.ranking import Judged, best, furthest

RUSSIAN = "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства страны."


@pytest.mark.parametrize(
    ("text", "is_cut", "reason"),
    [
        (RUSSIAN, False, None),
        ("42", False, None),
        (" \n", False, "empty"),
        ("", True, "empty"),
        (RUSSIAN, True, "cut at the limit"),
        ("да " * 20, False, "repetitive"),
        (f"{RUSSIAN}\n\n{RUSSIAN} {RUSSIAN}", False, "repetitive"),
        ("The quick brown fox jumps.", False, "wrong script"),
        ("Вот код, который это делает:\n```\nfor (int i = 0; i < n; i++) { return; }\n```", False, None),
    ],
)
def test_filters(text: str, is_cut: bool, reason: str | None) -> None:
    assert Filters(scripts=["Cyrillic"]).reason(Answer(text, 5, is_cut)) == reason


def test_filters_that_are_switched_off() -> None:
    assert Filters().reason(Answer("The quick brown fox", 5, False)) is None
    assert Filters(kept=[CUT]).reason(Answer("да " * 20, 5, True)) == "repetitive"
    assert Filters(scripts=["Cyrillic", "Latin"]).reason(Answer("Go и C", 5, False)) is None


def test_fractions() -> None:
    assert repeated_fraction("ab" * 20) == pytest.approx(19 / 21)
    assert repeated_fraction("коротко") == 0 and repeated_fraction(RUSSIAN) == 0
    assert script_fraction("да no", ["Cyrillic"]) == 0.5 and script_fraction("1 + 1", ["Cyrillic"]) == 1


def test_scores() -> None:
    for reply, score in (
        ("4", 4), ("Score: 4.5/5", 4.5), ("On a scale from 1 to 5: 3.", 3), ("Оценка: 4,5 из 5", 4.5), ("good", None),
        ("10", None), ("I give 2 out of 5 because of 12 errors", 2), ("", None),
    ):  # fmt: skip
        assert score_of(reply) == score, reply
    filters = Filters(min_score=4)
    assert [filters.reason_of_score(score) for score in (None, 3.9, 4)] == ["no score", "low score", None]


def test_the_grader_sees_the_conversation() -> None:
    messages = ({"role": "system", "content": "{answer}"}, {"role": "user", "content": "Привет"})
    request = grading_request("{prompt} | {answer}", Chat(messages, "here"), "{prompt}")
    assert request.messages == ({"role": "user", "content": "system: {answer}\n\nuser: Привет | {prompt}"},)
    assert "{prompt}" in read_grader_prompt() and "{answer}" in read_grader_prompt()


def test_ranking() -> None:
    def judged(score, log_probability, reason=None):
        return Judged(Answer(f"{score} {log_probability}", 1, False, log_probability), score, reason)

    kept = [judged(4, -1.0), judged(5, -2.0), judged(5, -1.5), judged(5, -0.1, "low score")]
    assert best(kept) is kept[2]
    assert best([judged(None, None), judged(None, None)]).answer.text == "None None"
    assert best([judged(None, -1.0, "empty")]) is None and best([]) is None
    assert furthest([judged(None, 1, "empty"), judged(None, 2, "wrong script"), judged(None, 3, "wrong script")]) == (
        "wrong script", "None 2",
    )  # fmt: skip
    assert furthest([]) == ("prompt too long", "")


def test_passages_end_where_sentences_do() -> None:
    text = " ".join(f"Sentence number {number} is here." for number in range(40))
    found = list(passages(text, 300))
    assert all(80 <= len(passage) <= 300 and passage.endswith(".") for passage in found)
    assert " ".join(found) == text
    assert list(passages("short", 300)) == [] and [len(p) for p in passages("x" * 700, 300)] == [300, 300, 100]
    assert list(passages(f"{'a ' * 60}\n{'b ' * 60}", 200)) == [("a " * 60).strip(), ("b " * 60).strip()]


def test_passages_are_drawn_evenly_and_again(tmp_path: Path) -> None:
    lines = [f"Passage number {number:03} " + "x" * 70 for number in range(200)]
    (tmp_path / "text.txt").write_text("\n\n".join([*lines, *lines]))
    draw = {seed: drawn_passages([tmp_path / "text.txt"], 50, column="text", longest=200, seed=seed) for seed in (1, 2)}
    assert draw[1] == drawn_passages([tmp_path / "text.txt"], 50, column="text", longest=200, seed=1)
    for found in draw.values():
        assert len(set(found)) == 50 and set(found) <= set(lines)
        assert 60 < sum(lines.index(passage) for passage in found) / 50 < 140
    assert draw[1] != draw[2]
    assert len(drawn_passages([tmp_path / "text.txt"], 999, column="text", longest=200, seed=0)) == 200


def test_requests_about_text_are_in_its_language() -> None:
    wordings = read_wordings()
    found = [chat.messages[0]["content"] for chat in prompts_of_text([RUSSIAN] * 24, wordings, FORMS)]
    assert len(set(found)) == 3 + 8 + 4, "each wording of each form"
    assert sum(RUSSIAN not in content for content in found) == 8 and all(beginning(RUSSIAN) in text for text in found)
    assert not any(letter in content for content in found for letter in "abcdefghijklmnopqrstuvwxyz")
    (english,) = prompts_of_text(["The quick brown fox jumps over the lazy dog"], wordings, ["repeat"])
    assert english.messages[0]["content"].startswith("Repeat this text word for word")


def test_wordings_of_lepmerge_are_none_of_the_evaluations() -> None:
    from lepmerge.comparison.copying import REQUEST

    for forms in read_wordings().by_script.values():
        assert set(forms) == set(FORMS) and len(forms["repeat"]) >= 6
        assert REQUEST not in forms["repeat"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "cannot be read as JSON"),
        ('{"Cyrillic": {}}', "expected an object with the key `other`"),
        ('{"other": {"continue": ["{text}"]}}', "other.repeat is not a list of wordings"),
        ('{"other": {"continue": ["{text}"], "repeat": ["again"], "question": ["{text}"]}}', "does not contain {text}"),
        ('{"Klingon": {}, "other": {}}', "Unicode has no script 'Klingon'"),
    ],
)
def test_faults_of_wordings(tmp_path: Path, content: str, fault: str) -> None:
    (tmp_path / "wordings.json").write_text(content)
    with pytest.raises(GenerationError) as error:
        read_wordings(tmp_path / "wordings.json")
    assert fault in str(error.value)


def test_copies() -> None:
    assert [num_copies(60, 0.4), num_copies(13531, 0.425), num_copies(1, 0.1)] == [40, 10001, 0]
    first, second = copies([RUSSIAN, RUSSIAN + " Да."], read_wordings())
    assert [message["role"] for message in first] == ["user", "assistant"]
    assert first[1]["content"] == RUSSIAN and RUSSIAN in first[0]["content"]
    assert first[0]["content"].replace(RUSSIAN, "") != second[0]["content"].replace(RUSSIAN + " Да.", "")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "ru.txt").write_text("\n\n".join(f"{RUSSIAN} {number}" for number in range(30)))
    return tmp_path / "ru.txt"


def test_copies_follow_the_answers(tmp_path: Path, texts: Path) -> None:
    prompts = generation.write_prompts(tmp_path / "prompts.jsonl", "one", "two", "three", "four")

    def answer(body):
        return generation.completion("" if body["messages"][0]["content"] == "four" else "good")

    with generation.server(answer) as (url, _):
        done = pico.command("generate", "served", prompts, "--server", url, "-o", tmp_path / "out",
                            "--copies", texts, "--copy-fraction", 0.5)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[:3] == [
        "4 prompts, 3 answers kept (dropped: empty 1)", "3 copies added, 6 records in all", str(tmp_path / "out"),
    ]  # fmt: skip
    found = generation.chats(tmp_path / "out")
    assert [messages[1]["content"] for messages in found[:3]] == ["good"] * 3
    assert all(messages[1]["content"] in messages[0]["content"] for messages in found[3:]) and len(found) == 6
    report = generation.report(tmp_path / "out")
    assert (report["kept"], report["copies"], report["records"]) == (3, 3, 6) and done.stderr.count("note:") == 0


def test_too_little_text_to_copy(tmp_path: Path) -> None:
    prompts = generation.write_prompts(tmp_path / "prompts.jsonl", "one", "two", "three", "four")
    (tmp_path / "ru.txt").write_text(RUSSIAN)
    with generation.server(lambda body: generation.completion("good")) as (url, _):
        done = pico.command("generate", "served", prompts, "--server", url, "-o", tmp_path / "out",
                            "--copies", tmp_path / "ru.txt", "--copy-fraction", 0.5)  # fmt: skip
    assert "note: the text of --copies has passages for 1 of 4 copies: give more text" in done.stderr
    assert generation.report(tmp_path / "out")["copies"] == 1


def test_prompts_from_text(tmp_path: Path, texts: Path) -> None:
    with generation.server(lambda body: generation.completion("good")) as (url, requests):
        done = pico.command("generate", "served", "--text", texts, "--text-prompts", 5, "--form", "question",
                            "--server", url, "-o", tmp_path / "out", "-q")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert len(requests) == 5 and all(RUSSIAN in request["messages"][0]["content"] for request in requests)


@pytest.mark.parametrize("kind", ["same", "link", "content", "folder"])
def test_text_of_copies_is_not_that_of_prompts(tmp_path: Path, texts: Path, kind: str) -> None:
    other = texts
    if kind == "link":
        other = tmp_path / "link.txt"
        other.symlink_to(texts)
    elif kind == "content":
        other = tmp_path / "other.txt"
        other.write_bytes(texts.read_bytes())
    elif kind == "folder":
        other = tmp_path
    done = pico.command("generate", "served", "--text", other, "--copies", texts, "-o", tmp_path.parent / "out")
    pico.assert_one_line_error(done, 1, f"--copies {texts}: this text is also among the prompts")


MISUSES = {
    "no prompts": ([], 2, "there are no prompts"),
    "greedy candidates": (["PROMPTS", "--candidates", 2], 2, "--candidates: greedy answers are all the same"),
    "server of no grader": (["PROMPTS", "--grader-server", "http://a"], 2, "need --grader MODEL"),
    "key without server": (["PROMPTS", "--api-key-env", "HOME"], 2, "it needs --server"),
    "key of no grader": (["PROMPTS", "--grader-api-key-env", "HOME"], 2, "it needs --grader-server"),
    "no such key": (["PROMPTS", "--server", "http://a", "--api-key-env", "NO_KEY"], 2, "has no variable NO_KEY"),
    "no URL": (["PROMPTS", "--server", "127.0.0.1"], 2, "--server 127.0.0.1: expected a URL such as http://"),
    "no script": (["PROMPTS", "--script", "Klingon"], 1, "Unicode has no script 'Klingon'"),
    "no model": (["PROMPTS"], 1, "no such folder"),
    "no text": (["--text", "missing.txt"], 1, "missing.txt: no such file, folder or glob"),
    "short text": (["--text", "SHORT"], 1, "no passage has 80 characters or more"),
    "text as prompts": (["SHORT"], 1, "is not a file of chats: expected .jsonl"),
    "grader's prompt": (["PROMPTS", "--grader", "x", "--grader-prompt", "SHORT"], 1, "{prompt} and {answer}"),
    "copies of nothing": (["PROMPTS", "--copies", "missing.txt"], 1, "missing.txt: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse(tmp_path: Path, misuse: str) -> None:
    options, code, fault = MISUSES[misuse]
    (tmp_path / "short.txt").write_text("short")
    prompts = generation.write_prompts(tmp_path / "prompts.jsonl", "one")
    names = {"PROMPTS": prompts, "SHORT": tmp_path / "short.txt"}
    arguments = [names.get(option, option) for option in options]
    done = pico.command("generate", tmp_path / "model", *arguments, "-o", tmp_path / "out")
    pico.assert_one_line_error(done, code, fault)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "short.txt"]


def test_json_and_progress(tmp_path: Path) -> None:
    prompts = generation.write_prompts(tmp_path / "prompts.jsonl", "one", "two")
    with generation.server(lambda body: generation.completion("good")) as (url, _):
        shown = pico.command("generate", "served", prompts, "--server", url, "-o", tmp_path / "shown")
        done = pico.command("generate", "served", prompts, "--server", url, "-o", tmp_path / "out", "--json")
    printed = json.loads(done.stdout)
    assert done.stderr == "" and (printed.pop("schema"), printed.pop("command")) == (1, "generate")
    assert printed == generation.report(tmp_path / "out")
    assert shown.stderr.startswith("answers: 1 of 2, ") and " tokens/s, " in shown.stderr
    assert shown.stdout.splitlines() == ["2 prompts, 2 answers kept", str(tmp_path / "shown")]


def test_prompts_of_the_paper(tmp_path: Path) -> None:
    """recipes/paper/self_calibration: good chats of Saiga's form become prompts of generate."""
    folder = Path(__file__).parent.parent / "recipes/paper/self_calibration"
    chat = [{"role": "user", "content": "Привет"}, {"role": "bot", "content": "Здравствуй"}]
    rows = [
        {"messages": chat, "opus_score": 9, "is_bad_by_regex": False},
        {"messages": chat, "opus_score": 7, "is_bad_by_regex": False},
        {"messages": chat, "opus_score": 9, "is_bad_by_regex": True},
        {"messages": chat, "opus_score": None, "is_bad_by_regex": False},
    ]
    (tmp_path / "saiga.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = runpy.run_path(str(folder / "prompts.py"))
    script["main"](str(tmp_path / "prompts.jsonl"), str(tmp_path / "saiga.jsonl"))
    (prompt,) = prompts_of_files([tmp_path / "prompts.jsonl"])
    assert prompt.messages == ({"role": "user", "content": "Привет"},)
    read_grader_prompt(folder / "grader.txt")


def test_the_command_of_the_paper_has_options_that_exist() -> None:
    text = (Path(__file__).parent.parent / "recipes/paper/self_calibration/README.md").read_text()
    command = next(part for part in text.split("\n\n") if part.lstrip().startswith("lepmerge generate"))
    known = {name for parameter in command_of_generate.params for name in parameter.opts}
    used = [word for word in command.split() if word.startswith("-")]
    assert len(used) > 8 and set(used) <= known
