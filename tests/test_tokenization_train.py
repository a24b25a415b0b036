"""tokenizer train, optimize and report: exact round trips, repeatable bytes, maps of ids, metrics by hand."""

import json
from pathlib import Path

import pico
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import lepmerge
from lepmerge.corpus import Corpus
from lepmerge.tokenization.build import Optimize, Train, build_tokenizer
from lepmerge.tokenization.report import compare_tokenizers
from lepmerge.vocabulary.vocabulary import Vocabulary

RUSSIAN = [
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "В чащах юга жил бы цитрус? Да, но фальшивый экземпляр!",
    "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства.",
    "Эх, чужак, общий съём цен шляп (юфть) — вдрызг!",
    "Привет, мир! Сегодня 12 мая 2024 года, температура 3,5 градуса выше нуля.",
]
BASES = {
    "byte_level": lambda: pico.byte_level(pico.ENGLISH, 330),
    "sentencepiece": lambda: pico.sentencepiece(pico.ENGLISH, 400),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Real Russian prose, some 50 kB."""
    path = tmp_path_factory.mktemp("corpus") / "ru.txt"
    held_out = (Path(__file__).parent.parent / "recipes/quickstart/heldout_ru.txt").read_text(encoding="utf-8")
    path.write_text("\n\n".join([held_out[:30_000], *RUSSIAN * 5]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: pico.save_model(folder / name, make(), chat=True) for name, make in BASES.items()}


def train(kind: str, corpus: Path, output: Path, *, like: Path) -> dict:
    return build_tokenizer(Train(kind=kind, model=str(like), corpus=Corpus([str(corpus)]), vocab_size=600), output)


def optimize(base: Path, corpus: Path, output: Path, **settings) -> dict:
    return build_tokenizer(Optimize(model=str(base), corpus=Corpus([str(corpus)]), **settings), output)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("base", BASES)
def test_train(tmp_path: Path, corpus: Path, bases, base: str, kind: str) -> None:
    for name in ("a", "b"):
        train(kind, corpus, tmp_path / name, like=bases[base])
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    old, new = Vocabulary.in_folder(bases[base]), Vocabulary.in_folder(tmp_path / "a")
    assert new.size == 600 == len(new.all_ids) and new.added.keys() == old.added.keys()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    for text in [*RUSSIAN, *pico.ENGLISH, "\t日本 🎄\n x  y"]:
        assert new.tokenizer.decode(new.tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert len(loaded(RUSSIAN[0]).input_ids) < len(AutoTokenizer.from_pretrained(bases[base])(RUSSIAN[0]).input_ids)
    step = {"op": "swap_vocabulary", "tokenizer": str(tmp_path / "a")}
    folder = pico.run_recipe(tmp_path / "run", {"instruct": bases[base]}, [step])
    assert lepmerge.open_model(folder).num_rows == 600


@pytest.fixture(scope="module")
def unigram(tmp_path_factory, corpus: Path, bases) -> Vocabulary:
    folder = tmp_path_factory.mktemp("unigram") / "new"
    train("unigram", corpus, folder, like=bases["byte_level"])
    return Vocabulary.in_folder(folder)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30))
def test_unigram_gives_every_text_back(unigram: Vocabulary, text: str) -> None:
    ids = unigram.tokenizer.encode(text, add_special_tokens=False).ids
    assert unigram.tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("base", BASES)
def test_optimize(tmp_path: Path, corpus: Path, bases, base: str) -> None:
    old = Vocabulary.in_folder(bases[base])
    report = optimize(bases[base], corpus, tmp_path / "new", keep=0.9, vocab_size=old.size + 20)
    new = Vocabulary.in_folder(tmp_path / "new")
    id_map = {int(k): v for k, v in json.loads((tmp_path / "new" / "id_map.json").read_text()).items()}
    assert new.size == old.size + 20 and report["checks"]["unreachable"] == report["checks"]["unreachable_kept"] == 0
    tokens = {id: token for token, id in old.all_ids.items()}
    assert all(new.all_ids[tokens[old_id]] == new_id for old_id, new_id in id_map.items())
    assert len(id_map) < old.size and [id_map[id] for id in sorted(id_map)] == sorted(id_map.values())
    assert {old.added[content].id for content in old.added} <= id_map.keys()
    for text in RUSSIAN:
        assert new.tokenizer.decode(new.tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert report["symbols_per_token"]["new"] > report["symbols_per_token"]["old"]


def test_optimize_keeps_what_the_corpus_uses(tmp_path: Path, bases) -> None:
    (tmp_path / "en.txt").write_text("the the the fox fox\n" * 50)
    old = Vocabulary.in_folder(bases["byte_level"])
    num = len(old.ordinary)
    base, text = bases["byte_level"], tmp_path / "en.txt"
    optimize(base, text, tmp_path / "new", keep=(num - 20) / num, vocab_size=old.size - 20)
    new = Vocabulary.in_folder(tmp_path / "new")
    for word in ("the", " the", " fox"):
        before, after = (v.tokenizer.encode(word, add_special_tokens=False).tokens for v in (old, new))
        assert before == after


@pytest.mark.parametrize(
    ("command", "exit_code", "part"),
    [
        (
            ["optimize", "{base}", "{corpus}", "--keep", "1%", "--vocab-size", "500"],
            1,
            "must stay",
        ),
        (["optimize", "{base}", "{corpus}", "--keep", "100%", "--vocab-size", "300"], 1, "--keep leaves"),
        (["optimize", "{base}", "{corpus}", "--keep", "half", "--vocab-size", "300"], 2, "50%"),
        (["train", "{corpus}", "--type", "bpe", "--vocab-size", "100", "--like", "{base}"], 1, "bytes alone are"),
        (
            ["train", "{corpus}", "--type", "bpe", "--vocab-size", "99999", "--like", "{base}"],
            1,
            "99999 were requested",
        ),
        (["train", "{corpus}", "--type", "unigram", "--vocab-size", "99999", "--like", "{base}"], 1, "99999 tokens"),
        (["train", "nowhere", "--type", "bpe", "--vocab-size", "600", "--like", "{base}"], 1, "nowhere"),
    ],
    ids=lambda value: " ".join(value[:1] + value[4:6]) if isinstance(value, list) else None,
)
def test_faults(tmp_path: Path, corpus: Path, bases, command: list[str], exit_code: int, part: str) -> None:
    places = {"base": bases["byte_level"], "corpus": corpus}
    arguments = [argument.format(**places) for argument in command]
    result = pico.command("tokenizer", *arguments, "-o", tmp_path / "new")
    assert result.exit_code == exit_code and part in result.stderr, result.output
    assert not any(tmp_path.iterdir())


def test_report(tmp_path: Path, corpus: Path, bases) -> None:
    train("bpe", corpus, tmp_path / "new", like=bases["byte_level"])
    first, second = str(bases["byte_level"]), str(tmp_path / "new")
    text = tmp_path / "text.txt"
    text.write_text("Съешь же\n\nthe fox", encoding="utf-8")
    found = compare_tokenizers([first, second], [str(text)])[str(text)]
    for name, metrics in found.items():
        tokenizer = Vocabulary.in_folder(Path(name)).tokenizer
        encoded = [tokenizer.encode(part, add_special_tokens=False) for part in ("Съешь же", "the fox")]
        count = sum(len(encoding.ids) for encoding in encoded)
        assert metrics["tokens"] == count and metrics["symbols_per_token"] == pytest.approx(15 / count)
        assert metrics["tokens_per_word"] == count / 4 and metrics["bytes_per_token"] == pytest.approx(22 / count)
        assert metrics["exact_texts"] == 1.0
    assert found[second]["speed_up"] == found[first]["tokens"] / found[second]["tokens"]
    assert found[second]["differing"]["texts"] >= 1 and 0 < found[second]["new_tokens_fraction"] < 1
    chart = tmp_path / "chart.png"
    result = pico.command("tokenizer", "report", first, second, "--text", text, "--plot", chart)
    assert result.exit_code == 0 and "symbols per token" in result.stdout, result.output
    assert f"{found[second]['new_tokens_fraction']:.1%}" in result.stdout
    differing = found[second]["differing"]
    assert f"tokenizes {differing['texts']} of {differing['of']} texts differently" in result.stdout
    assert chart.read_bytes().startswith(b"\x89PNG") and chart.stat().st_size > 5000


@pytest.mark.parametrize("length", [5, 40, 140])
def test_the_legend_of_a_chart_is_not_cut_off(tmp_path: Path, length: int) -> None:
    from matplotlib.image import imread

    from lepmerge.output.plots import bars

    values = {"ru.txt": {f"{number}{'m' * length}": 1.0 + number for number in range(3)}}
    bars(tmp_path / "chart.png", values, label="symbols per token")
    image = imread(tmp_path / "chart.png")
    margins = [image[:, :3], image[:, -3:], image[:3], image[-3:]]
    assert all((margin == 1.0).all() for margin in margins), "something is drawn over the edge"
    assert (image < 1.0).any()


def test_skipped_texts_are_counted_in_a_report(tmp_path: Path, bases) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "the fox"}\n{"text": null}\n{"text": ""}\n{"text": null}\n')
    base = str(bases["byte_level"])
    corpus = {"documents": 1, "texts": 1, "skipped": {"empty": 1, "null": 2}}
    assert compare_tokenizers([base], [str(text)])[str(text)][base]["corpus"] == corpus
    shown = pico.command("tokenizer", "report", base, "--text", text).stdout
    assert shown.startswith(f"{text}; skipped: 1 empty, 2 null\n") and "corpus" not in shown
