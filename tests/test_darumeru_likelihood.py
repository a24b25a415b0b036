"""Log-probabilities, ranks and token ids through the harness equal those of transformers alone."""

import pickle

import darumeru_reference as reference
import darumeru_setting
import pytest
import torch
from darumeru_setting import load

CHOICE_TASKS = ["parus", "rcb", "rwsd", "ruopenbookqa", "ruworldtree", "rucola", "rummlu", "mmlu_ru", "mmlu_en"]


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def model(request, tmp_path_factory: pytest.TempPathFactory):
    """A model whose tokenizer has " 1" as one token, and one whose tokenizer has a lone space and "1"."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("model")
    darumeru_setting.save_model(folder, getattr(darumeru_setting, request.param)())
    return HFLM(pretrained=str(folder), device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def tasks(model):
    return load(pretrained=model.tokenizer.name_or_path)


def build(task, model, *, num_shots: int = 1, chat: bool = False, limit: int = 4) -> list:
    task.set_config("num_fewshot", num_shots)
    template = {"apply_chat_template": True, "chat_template": model.apply_chat_template} if chat else {}
    task.build_all_requests(limit=limit, fewshot_as_multiturn=True, **template)
    return task.instances


def log_probabilities(model, ids: list[int]) -> torch.Tensor:
    """Return the log-probability of each token but the first, by one plain forward."""
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def encode(model, text: str) -> list[int]:
    """Return the ids of a text, which begins with exactly one begin token."""
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    begin = model.tokenizer.bos_token_id
    return ids if ids[0] == begin else [begin, *ids]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", CHOICE_TASKS)
def test_choices(model, tasks, name, chat):
    instances = build(tasks[name], model, chat=chat)
    likelihoods = [likelihood for likelihood, _ in model.loglikelihood(instances, disable_tqdm=True)]
    for instance, likelihood in zip(instances, likelihoods, strict=True):
        context, choice = instance.args
        ids = encode(model, context + choice)
        if "1" in choice and "▁" in model.tokenizer.get_vocab():  # a blank token, then the digit
            assert model.tokenizer.convert_ids_to_tokens(ids)[-2:] == ["▁", "1"]
        # Of these tokenizers and choices all tokens but the last are shared.
        assert likelihood == pytest.approx(float(log_probabilities(model, ids)[-1]), abs=1e-5)
    by_question = {}
    for instance, likelihood in zip(instances, likelihoods, strict=True):
        by_question.setdefault(instance.args[0], set()).add(round(likelihood, 6))
    assert all(len(values) > 1 for values in by_question.values())  # the model tells the choices apart


def test_choices_take_one_forward_a_question(model, tasks):
    batches = []
    hook = model.model.register_forward_pre_hook(lambda module, arguments: batches.append(len(arguments[0])))
    try:
        for name in CHOICE_TASKS:
            instances = build(tasks[name], model, limit=5)
            batches.clear()
            model.loglikelihood(instances, disable_tqdm=True)
            num_questions = 10 if name == "parus" else 5  # both orders
            assert sum(batches) == len({instance.args[0] for instance in instances}) == num_questions, name
            assert len(instances) == num_questions * len(tasks[name].options["choices"])
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["rcb", "sum_extractive"])
def test_logits_are_computed_for_the_scored_tokens_only(model, tasks, name):
    """The answers are those of the harness with all logits; see the other tests for their values."""
    instances = build(tasks[name], model, limit=3)
    computed = []
    hook = model.model.lm_head.register_forward_hook(lambda module, ids, logits: computed.append(logits.shape[1]))
    try:
        answers = model.loglikelihood(instances, disable_tqdm=True)
        kept, all_logits = sum(computed), []
        computed.clear()
        for instance in instances:  # a batch of one text, and another way into the harness
            context, scored = instance.args[1].token_ids(model, instance.args[0])
            all_logits.append(float(log_probabilities(model, context + scored)[-len(scored) :].sum()))
    finally:
        hook.remove()
    assert 3 * kept < sum(computed)
    assert [likelihood for likelihood, _ in answers] == pytest.approx(all_logits, abs=1e-4)


@pytest.mark.parametrize("chat", [False, True])
def test_sentences(model, tasks, chat):
    task = tasks["sum_extractive"]
    instances = build(task, model, chat=chat, limit=6)
    answers = model.loglikelihood(instances, disable_tqdm=True)
    for document in task.test_docs()[:6]:
        own = [index for index, instance in enumerate(instances) if instance.doc is document]
        messages = [str(instances[index].args[1]) for index in own]
        sentences = reference.rows("daru_treeway_eval")[instances[own[0]].doc_id]["src_sents"]
        assert messages == [f"Наиболее важные предложения статьи: {sentence}" for sentence in sentences]
        start = encode(model, instances[own[0]].args[0])
        tokens = [encode(model, instances[own[0]].args[0] + message)[len(start) :] for message in messages]
        num_tokens = min(map(len, tokens))
        means = [float(log_probabilities(model, start + ids)[len(start) - 1 :][:num_tokens].mean()) for ids in tokens]
        for index, mean in zip(own, means, strict=True):
            assert answers[index][0] / num_tokens == pytest.approx(mean, abs=1e-5)
        score = task.process_results(document, [answers[index] for index in own])["score"]
        gold = reference.rows("daru_treeway_eval")[instances[own[0]].doc_id]["extractive_summary"]
        assert score == reference.r_precision(means, gold)


def test_choices_of_several_tokens_are_told_apart_by_the_first_that_differs(model):
    from darumeru_tasks.harness import Choice

    texts = [" Нетто", " Нетто-брутто"]
    encoded = [encode(model, "Ответ:" + text) for text in texts]
    with pytest.raises(ValueError, match="cannot tell the choices"):  # one is the beginning of the other
        Choice(texts, 0).token_ids(model, "Ответ:")
    texts = [" Нет-да", " Нет-ёж"]
    encoded = [encode(model, "Ответ:" + text) for text in texts]
    shared = next(place for place, (a, b) in enumerate(zip(*encoded, strict=False)) if a != b)
    for place in (0, 1):
        context, scored = Choice(texts, place).token_ids(model, "Ответ:")
        assert context == encoded[0][:shared] == encoded[1][:shared]
        assert scored == [encoded[place][shared]]


def test_identical_remainders_are_an_error(model, tasks):
    from darumeru_tasks.errors import DarumeruError
    from darumeru_tasks.harness import Choice

    document = tasks["rcb"].test_docs()[0]
    instances = [tasks["rcb"].request("loglikelihood", document, ("x", Choice([" 1", " 1"], i)), i, {}) for i in (0, 1)]
    with pytest.raises(DarumeruError, match=r"cannot tell the choices \[' 1', ' 1'\] apart"):
        model.loglikelihood(instances, disable_tqdm=True)


def test_requests_are_strings_that_survive_pickling(model, tasks):
    choice, sentence = (build(tasks[name], model)[1].args[1] for name in ("rcb", "sum_extractive"))
    for text in (choice, sentence):
        again = pickle.loads(pickle.dumps(text))
        assert type(again) is type(text) and (again, again.texts, again.place) == (text, text.texts, text.place)
        assert text == text.texts[1] and text.encode() == str(text).encode()


# Generated ids


def force(model, monkeypatch: pytest.MonkeyPatch, answers: list[list[int]]) -> None:
    """Let the model write these ids, whatever the prompt is; beyond them its end token."""
    rows = iter(answers)

    def generate(input_ids, max_length, **keywords):
        taken = [next(rows) for _ in input_ids]
        width = max(map(len, taken)) + 1
        end = model.tokenizer.eos_token_id
        tails = [[*ids, end, *[model.tokenizer.pad_token_id] * (width - len(ids) - 1)] for ids in taken]
        return torch.cat([input_ids, torch.tensor(tails)], 1)

    monkeypatch.setattr(model.model, "generate", generate)


def scores(task, model, *, num_shots: int = 0, chat: bool = False) -> dict[str, float]:
    """Return a task's metrics from what the model writes for its first document."""
    task.set_config("num_fewshot", num_shots)
    instances = build(task, model, num_shots=num_shots, chat=chat, limit=1)
    values = task.process_results(instances[0].doc, model.generate_until(instances, disable_tqdm=True))
    return {name: function([values[name]]) for name, function in task.aggregation().items()}


def test_length_counts_generated_ids_not_those_of_the_text(model, tasks, monkeypatch):
    task = tasks["cp_sent_en"]
    source = task.test_docs()[0]["target"]
    adds_space = model.tokenizer.tokenize("x")[0].startswith("▁")
    num_source = len(model.tokenizer.encode(source if adds_space else f" {source}", add_special_tokens=False))
    # A perfect copy in more tokens than the tokenizer would need: letter by letter.
    letters = [id for letter in f" {source}" for id in spelled(model, letter)]
    assert len(letters) > num_source
    force(model, monkeypatch, [letters])
    written = scores(task, model)
    assert written["score"] == pytest.approx(num_source / len(letters)) and written["exact_ids"] == 1.0
    assert written["symbol_per_token"] == pytest.approx(len(source) / len(letters), rel=0.05)
    plain = str(model.tokenizer.decode(letters))
    fallback = task.process_results(task.test_docs()[0], [plain])
    assert fallback["exact_ids"] == 0.0
    assert fallback["score"] == pytest.approx(num_source / len(model.tokenizer.encode(plain, add_special_tokens=False)))
    assert fallback["score"] > written["score"] + 0.1  # what counting again would hide


def spelled(model, letter: str) -> list[int]:
    """Return the ids of a letter as separate tokens."""
    if not model.tokenizer.tokenize("x")[0].startswith("▁"):
        return model.tokenizer.encode(letter, add_special_tokens=False)
    ids = model.tokenizer.convert_tokens_to_ids([letter.replace(" ", "▁")])
    unknown = model.tokenizer.unk_token_id
    return [model.tokenizer.convert_tokens_to_ids(f"<0x{ord(letter):02X}>")] if ids[0] in (unknown, None) else ids


def test_ids_after_the_end_token_or_a_stop_sequence_do_not_count(model, tasks, monkeypatch):
    task = tasks["cp_sent_ru"]
    source = task.test_docs()[0]["target"]
    copy = model.tokenizer.encode(f" {source}", add_special_tokens=False)
    if model.tokenizer.tokenize("x")[0].startswith("▁"):
        copy = model.tokenizer.encode(source, add_special_tokens=False)
    newline = [id for letter in "\n" for id in spelled(model, letter)]
    end = model.tokenizer.eos_token_id
    for tail in ([], [*newline, *copy], [end, *copy]):
        force(model, monkeypatch, [[*copy, *tail]])
        assert scores(task, model)["score"] == 1.0, tail
        force(model, monkeypatch, [[*copy, *tail]])
        chat = scores(task, model, chat=True)["score"]
        num_read = len(copy) + (len(tail) if tail[:1] == newline[:1] else 0)  # a chat continues after a line's end
        assert chat == pytest.approx(len(copy) / num_read)
    for nothing in ([], newline, [end]):
        force(model, monkeypatch, [nothing])
        assert scores(task, model)["score"] == 0.0


def test_the_source_counts_with_the_space_that_comes_before_it(model, tasks):
    tokenizer, tokens = model.tokenizer, tasks["cp_sent_en"].tokens
    for text in ("Да", "A", "1", "лампа", "  x"):
        spaced = text if tokenizer.tokenize("x")[0].startswith("▁") else f" {text}"
        assert tokens.count_source(text) == len(tokenizer.encode(spaced, add_special_tokens=False))
    assert tokens.count_source("Да") == 1 < len(tokenizer.encode("—Да", add_special_tokens=False)) - 1


def test_a_copy_of_nothing_but_white_space_is_empty(tasks):
    from darumeru_tasks.harness import Generated

    for name in ("cp_sent_en", "cp_para_en"):
        document = tasks[name].test_docs()[0]
        assert tasks[name].process_results(document, [Generated("  ", [5, 5])])["score"] == 0.0


def test_the_source_counts_up_to_the_limit_of_generation(model, tasks):
    from darumeru_tasks.harness import Generated

    task = tasks["cp_sent_en"]
    document = {**task.test_docs()[0], "target": "lamp " * 300}
    text = Generated("lamp", model.tokenizer.encode("lamp", add_special_tokens=False))
    assert task.process_results(document, [text])["score"] == pytest.approx(len(text.ids) / 128)


def test_generated_texts_keep_their_ids(model):
    from darumeru_tasks.harness import Generated, extend_harness

    extend_harness()
    end = model.tokenizer.eos_token_id
    text = model.tok_decode([*model.tokenizer.encode("one two", add_special_tokens=False), end, end])
    assert isinstance(text, Generated) and end not in text.ids and text.ids
    for kept in (text.split("t")[0], text.lstrip(), pickle.loads(pickle.dumps(text))):
        assert isinstance(kept, Generated) and kept.ids == text.ids
    assert not isinstance(model.tok_decode(end, skip_special_tokens=False), Generated)
