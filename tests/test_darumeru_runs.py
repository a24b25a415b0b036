"""Whole runs through the harness: groups, and that batches, limits and caches leave the scores as they are."""

import copy
import json
import shutil

import darumeru_setting
import pytest

KINDS = ["parus", "rcb", "mmlu_en", "sum_extractive", "use", "cp_sent_ru"]
"""A task of each kind of request and of score."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return darumeru_setting.save_model(tmp_path_factory.mktemp("model"), darumeru_setting.byte_level(), context=1024)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch: pytest.MonkeyPatch):
    import lm_eval.caching.cache

    monkeypatch.setattr(lm_eval.caching.cache, "PATH", str(tmp_path / "requests"))
    return tmp_path


def run(folder, names=KINDS, *, batch_size=4, tasks=None, metadata=None, gen_kwargs="max_gen_toks=12", **keywords):
    """Return the results of `lm_eval.simple_evaluate`, and the number of rows that went through the model."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(folder), device="cpu", batch_size=batch_size, max_batch_size=4)
    rows = []
    model.model.register_forward_pre_hook(
        lambda module, arguments, keywords: rows.append(len(arguments[0] if arguments else keywords["input_ids"])),
        with_kwargs=True,
    )
    manager = darumeru_setting.manager(pretrained=str(folder), **(metadata or {}))
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=tasks or [f"darumeru_{name}" for name in names],
        task_manager=manager,
        gen_kwargs=gen_kwargs,
        **{"bootstrap_iters": 0, "limit": 5, "num_fewshot": 2, **keywords},
    )
    assert results is not None
    return results, sum(rows)


def scores(results) -> dict[str, float]:
    """Return "task/metric" → value of every metric of every task."""
    return {
        f"{task}/{metric}": value
        for task, metrics in results["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float)
    }


@pytest.fixture(scope="module")
def plain(folder):
    return run(folder)[0]


def test_the_runs_tell_something(plain):
    values = scores(plain)
    assert values["darumeru_cp_sent_ru/exact_ids,none"] == 1.0
    assert 0 < values["darumeru_cp_sent_ru/score,none"] < 1 and values["darumeru_cp_sent_ru/symbol_per_token,none"] > 0
    assert sum(0 < value < 1 for value in values.values()) >= 4


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_batch_sizes(folder, plain, batch_size):
    assert scores(run(folder, batch_size=batch_size)[0]) == pytest.approx(scores(plain), abs=1e-9)


def test_a_limit_scores_the_first_documents(folder, plain):
    limited = run(folder, limit=2)[0]
    tasks = darumeru_setting.load(pretrained=str(folder))
    for name in KINDS:
        first = sorted(plain["samples"][f"darumeru_{name}"], key=lambda sample: sample["doc_id"])[:2]
        for metric, function in tasks[name].aggregation().items():
            expected = function([sample[metric] for sample in first])
            assert limited["results"][f"darumeru_{name}"][f"{metric},none"] == pytest.approx(expected, abs=1e-12)


def test_a_limit_keeps_both_orders_of_parus(plain):
    samples = plain["samples"]["darumeru_parus"]
    assert len(samples) == 5 and all(len(sample["arguments"]) == 4 for sample in samples)


def test_samples_are_logged_as_json_and_change_nothing(folder, plain, caches):
    from lm_eval.loggers import EvaluationTracker

    assert scores(run(folder, log_samples=False)[0]) == pytest.approx(scores(plain), abs=1e-12)
    samples = copy.deepcopy(plain["samples"])
    tracker = EvaluationTracker(output_path=str(caches / "out"))
    tracker.save_results_aggregated({"results": plain["results"], "configs": plain["configs"]}, samples)
    for name in KINDS:
        tracker.save_results_samples(f"darumeru_{name}", samples[f"darumeru_{name}"])
    assert json.loads(next(caches.rglob("results_*.json")).read_text(encoding="utf-8"))["task_hashes"]
    files = {path.name.split("_2")[0]: path for path in caches.rglob("samples_*.jsonl")}
    sample = json.loads(files["samples_darumeru_rcb"].read_text(encoding="utf-8").splitlines()[0])
    assert sample["arguments"]["gen_args_0"]["arg_1"] == " 1" and sample["target"] in "123"
    sample = json.loads(files["samples_darumeru_cp_sent_ru"].read_text(encoding="utf-8").splitlines()[0])
    assert isinstance(sample["resps"][0][0], str)


def test_a_cache_of_answers(folder, plain, caches):
    first, num_first = run(folder, use_cache=str(caches / "answers"))
    again, num_again = run(folder, use_cache=str(caches / "answers"))
    assert num_first > 0 and num_again == 0  # nothing went through the model
    assert scores(first) == pytest.approx(scores(plain), abs=1e-9)
    assert scores(again) == pytest.approx(scores(plain), abs=1e-9)


def test_a_cache_of_requests(folder, plain):
    first, _ = run(folder, cache_requests=True)
    again, _ = run(folder, cache_requests=True)
    assert scores(first) == scores(again) == pytest.approx(scores(plain), abs=1e-9)


def test_a_cache_of_requests_is_told_apart_by_tokenizer_context_and_arguments(folder, tmp_path):
    other = darumeru_setting.save_model(tmp_path / "other", darumeru_setting.sentencepiece())

    def request(model, max_length=None, max_gen_toks=64, **keywords):
        metadata = {"max_length": max_length} if max_length else {}
        task = darumeru_setting.load(["darumeru_use"], pretrained=str(model), **metadata)["use"]
        task.set_config("generation_kwargs", {"max_gen_toks": max_gen_toks}, update=True)
        task.set_config("num_fewshot", 5)
        task.build_all_requests(limit=1, **keywords)
        return task.instances[0].args

    variants = [(folder,), (other, 519), (folder, 519), (folder, 350), (folder, 519, 150)]
    uncached = [request(*variant) for variant in variants]
    assert [prompt.count("Задание") - 1 for prompt, _ in uncached] == [5, 2, 3, 1, 2]
    assert [request(*variant, cache_requests=True) for variant in variants * 2] == uncached * 2


def test_a_cache_of_requests_is_not_used_for_edited_data(folder, tmp_path):
    data = shutil.copytree(darumeru_setting.DATA, tmp_path / "data")

    def prompts():
        task = darumeru_setting.load(["darumeru_use"], data=data, pretrained=str(folder))["use"]
        task.set_config("num_fewshot", 1)
        task.build_all_requests(limit=1, cache_requests=True)
        return task.instances[0].args[0]

    before, path = prompts(), data / "use" / "prompt.jsonl"
    assert prompts() == before
    path.write_text(path.read_text(encoding="utf-8").replace("Задание", "Вопрос"), encoding="utf-8")
    assert prompts() != before


def test_groups_are_means_and_the_first_one_of_all_17(folder):
    results, _ = run(
        folder, tasks=["darumeru"], limit=20, num_fewshot=0, gen_kwargs="max_gen_toks=4", bootstrap_iters=20
    )
    leaves = {name: results["results"][f"darumeru_{name}"] for name in darumeru_setting.NAMES}
    values = {name: leaf["score,none"] for name, leaf in leaves.items()}
    groups = {
        "darumeru": darumeru_setting.NAMES,
        "darumeru_mera": ["multiq", "parus", "rcb", "rwsd", "use", "ruopenbookqa", "ruworldtree", "rucola"],
        "darumeru_mmlu": ["rummlu", "mmlu_ru", "mmlu_en"],
        "darumeru_sum": ["sum_abstractive", "sum_extractive"],
        "darumeru_copy_en": ["cp_sent_en", "cp_para_en"],
        "darumeru_copy_ru": ["cp_sent_ru", "cp_para_ru"],
    }
    assert set(results["groups"]) == set(groups) and len(values) == 17
    for group, names in groups.items():
        expected = sum(values[name] for name in names) / len(names)
        assert results["groups"][group]["score,none"] == pytest.approx(expected, abs=1e-12)
        assert isinstance(results["groups"][group]["score_stderr,none"], float)
    assert all(isinstance(leaf["score_stderr,none"], float) for leaf in leaves.values())
    assert len(set(values.values())) > 3
    assert {leaf["sample_len"] for leaf in leaves.values()} == {
        12,
        14,
        20,
    }  # so that weighing by size would be another mean


def test_chat_runs_stop_at_the_end_token_only(folder):
    keywords = {"apply_chat_template": True, "fewshot_as_multiturn": True}
    results, _ = run(folder, **keywords)
    for name in ("use", "cp_sent_ru"):
        assert results["samples"][f"darumeru_{name}"][0]["arguments"][0][1]["until"] == []
    own, _ = run(folder, ["use"], gen_kwargs={"max_gen_toks": 12, "until": ["."]}, **keywords)
    assert own["samples"]["darumeru_use"][0]["arguments"][0][1]["until"] == ["."]


def test_sentences_stay_at_zero_shots(plain):
    assert plain["n-shot"]["darumeru_sum_extractive"] == 0 and plain["n-shot"]["darumeru_rcb"] == 2


def test_predictions_only(folder):
    results, _ = run(folder, ["rcb", "cp_sent_ru"], predict_only=True)
    assert results["results"]["darumeru_rcb"]["bypass,none"] == 999


def test_versions_are_reported(plain):
    assert all(version == 1.0 for version in plain["versions"].values())
