"""Run the fast tests in other environments: transformers 4.57 and 5, with and without mistral-common and protobuf.

python tests/environments.py [NAME...]      each environment is the folder .venv-NAME; it is made when it is missing
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TRANSFORMERS_4 = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2")
VENDOR = ("mistral-common==1.13.1", "protobuf==7.36.2", "numpy==2.3.5")
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "transformers-4": TRANSFORMERS_4,
    "transformers-4-vendor": (*TRANSFORMERS_4, *VENDOR),
    "transformers-5-vendor": VENDOR,
}
"""Name → packages that replace or complete those of constraints.txt. Plain transformers 5 is `make test` itself."""


def constraints(packages: tuple[str, ...]) -> str:
    """Return constraints.txt without the lines that `packages` replace."""
    replaced = {package.partition("==")[0] for package in packages}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "\n".join([*(line for line in lines if line.partition("==")[0] not in replaced), *packages, ""])


def make(name: str, folder: Path) -> None:
    """Create the environment and install lepmerge with its development tools."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pinned = folder / "constraints.txt"
    pinned.write_text(constraints(ENVIRONMENTS[name]))
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", pinned]
    torch = next(line for line in pinned.read_text().splitlines() if line.startswith("torch=="))
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "-e", f"{ROOT}[dev]", *ENVIRONMENTS[name]], check=True)
    (folder / "installed").touch()


def main(names: list[str]) -> int:
    """Run the tests in each environment; return how many environments failed."""
    failed = 0
    for name in names or ENVIRONMENTS:
        folder = ROOT / f".venv-{name}"
        if not (folder / "installed").exists():
            make(name, folder)
        print(f"== {name}", flush=True)
        tests = [folder / "bin" / "python", "-m", "pytest", "-n", "auto", "-m", "not slow"]
        failed += subprocess.run(tests, cwd=ROOT).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
