"""lepmerge compare: the command, its chart and its HTML file, which a browser opens without a request."""

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file

QUICKSTART = Path(__file__).parent.parent / "recipes/quickstart"
INSTRUCT = QUICKSTART / "instruct"
RUSSIAN = QUICKSTART / "heldout_ru.txt"


pytestmark = pytest.mark.usefixtures("one_thread")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "rect", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.asked += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}>"

    def handle_data(self, data):
        self.text += data


def test_command(tmp_path: Path) -> None:
    other = tmp_path / "a<b>"
    shutil.copytree(INSTRUCT, other)
    weights = load_file(INSTRUCT / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        noise = torch.randn(weights[name].shape, generator=generator)
        weights[name] += (0.3 * weights[name].float().std() * noise).to(weights[name].dtype)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    task = tmp_path / "task.jsonl"
    task.write_text("".join((QUICKSTART / "task.jsonl").read_text(encoding="utf-8").splitlines(True)[:12]))
    html, plot = tmp_path / "report.html", tmp_path / "compare.png"
    arguments = [
        "compare", f"old={INSTRUCT}", other, "--text", f"ru={RUSSIAN}", "--max-bytes", "3kB", "--copies", 2,
        "--task", task, "--chat", task, "--device", "cpu", "--html", html, "--plot", plot,
    ]  # fmt: skip
    result = pico.command(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert list(found["models"]) == ["old", "a<b>"] and found["reference"] == "old"
    old, new = found["models"]["old"], found["models"]["a<b>"]
    before = load_file(INSTRUCT / "model.safetensors")
    for key, name in (("input", "model.embed_tokens.weight"), ("output", "lm_head.weight")):
        rows = range(3, len(before[name]))  # without special tokens
        delta, whole = (part[rows].double().norm() for part in (weights[name] - before[name], before[name]))
        assert new["drift"][key] == pytest.approx(float(delta / whole), rel=1e-3)
    assert new["drift"]["shared"] == 2045
    pairs = list(zip(new["task"]["right"], old["task"]["right"], strict=True))
    assert new["task"]["examples"] == len(pairs) == 12 and new["task"]["accuracy"] == sum(a for a, _ in pairs) / 12
    assert new["task"]["only_this"] == pairs.count((True, False))
    assert new["task"]["only_reference"] == pairs.count((False, True)) > 0
    assert "p" not in old["task"] and "drift" not in old and "tokens" not in old
    difference = new["texts"]["ru"]["bits_per_byte"] - old["texts"]["ru"]["bits_per_byte"]
    assert new["texts"]["ru"]["bits_per_byte_difference"] == pytest.approx(difference) and difference > 0
    assert 0 < new["texts"]["ru"]["bits_per_byte_difference_error"] < difference
    assert old["texts"]["ru"]["bits_per_byte_difference"] == 0
    assert found["models"]["old"]["chat"]["equal_answers"] == 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    page = _Page()
    page.feed(html.read_text(encoding="utf-8"))
    assert page.open == [] and all(asked.startswith("data:") for asked in page.asked)
    assert "a<b>" in page.text
    shown = pico.command(*arguments, "--reference", "a<b>")  # a report of ours is replaced
    assert [line for line in shown.stderr.splitlines() if "measuring" in line] == ["measuring a<b>", "measuring old"]
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:4]] == ["model", "old", "a<b>"]
    assert shown.exit_code == 0 and "bits/byte ru" in shown.stdout and "McNemar" in shown.stdout


def opened(page: Path, folder: Path) -> tuple[list[str], set[str]]:
    """Return the lines of the console, and what the page asked the network for, in headless Chromium."""
    folder.mkdir()
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder / 'profile'}", f"--log-net-log={folder / 'net.json'}",
            "--enable-logging=stderr", "--window-size=1200,1600", f"--screenshot={folder / 'page.png'}", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (folder / "page.png").exists(), done.stderr[-2000:]
    asked = [event.get("params", {}) for event in json.loads((folder / "net.json").read_text())["events"]]
    # The browser asks its maker's hosts too when it starts. The origin of a page from a file is "null".
    urls = {request["url"] for request in asked if "url" in request and request.get("initiator") == "null"}
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], urls


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_the_report_opens_in_a_browser(tmp_path: Path) -> None:
    """No message in the console, no request to anywhere."""
    control = tmp_path / "control.html"  # what would be seen of a page that does both
    address = "http://127.0.0.1:9/"
    control.write_text(
        f'<link rel="stylesheet" href="{address}a"><img src="{address}b"><script>missing(fetch("{address}c"))</script>'
    )
    lines, urls = opened(control, tmp_path / "control")
    assert any("missing is not defined" in line for line in lines)
    assert {f"{address}{name}" for name in "ab"} <= urls

    html = tmp_path / "report.html"
    options = ("--text", f"ru={RUSSIAN}", "--max-bytes", "3kB", "--copies", 0, "--device", "cpu", "--html", html, "-q")
    assert pico.command("compare", INSTRUCT, *options).exit_code == 0
    assert opened(html, tmp_path / "report") == ([], set())
    assert (tmp_path / "report/page.png").stat().st_size > 20_000
