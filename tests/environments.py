"""Run the fast tests in other environments: transformers 4.57 and 5, with and without mistral-common and protobuf.

python tests/environments.py [NAME...]

Each environment is the folder .venv-NAME, which is made when it is missing. It is a layer over the environment of this
Python: it holds only the packages that differ, and sees the others.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent
TRANSFORMERS_4 = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2", "datasets==4.5.0")
MISTRAL = ("mistral-common==1.13.1", "numpy==2.3.5")
PROTOBUF = ("protobuf==7.36.2",)
ALL = ("tests",)
OF_TOKENIZERS = tuple(f"tests/test_{name}.py" for name in ("autotokenizer", "contradictory_inputs", "vocabulary"))
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "transformers-4-mistral": ((*TRANSFORMERS_4, *MISTRAL), OF_TOKENIZERS),
    "transformers-4-protobuf": ((*TRANSFORMERS_4, *PROTOBUF), OF_TOKENIZERS),
    "transformers-5-mistral": (MISTRAL, OF_TOKENIZERS),
    "transformers-5-protobuf": (PROTOBUF, OF_TOKENIZERS),
    "transformers-4": (TRANSFORMERS_4, ALL),
    "transformers-4-vendor": ((*TRANSFORMERS_4, *MISTRAL, *PROTOBUF), ALL),
    "transformers-5-vendor": ((*MISTRAL, *PROTOBUF), ALL),
}
"""Name → packages that differ from those of constraints.txt, and tests. Plain transformers 5 is `make test` itself."""
ABSENT_UNLESS_NAMED = {"mistral-common": "mistral_common", "protobuf": "google.protobuf"}
"""Package → module. The environment below must not have them."""


def constraints(packages: tuple[str, ...]) -> str:
    """Return constraints.txt without the lines that `packages` replace."""
    replaced = {package.partition("==")[0] for package in packages}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "\n".join([*(line for line in lines if line.partition("==")[0] not in replaced), *packages, ""])


def make(packages: tuple[str, ...], folder: Path) -> None:
    """Create the environment: the packages, and lepmerge from this folder."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    # addsitedir also reads the .pth files there, such as that of lm_eval's tasks; pip is there, too
    (own / "below.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    pinned = folder / "constraints.txt"
    pinned.write_text(constraints(packages))
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", pinned, *packages], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", ROOT], check=True)
    (folder / "installed").touch()


def check(packages: tuple[str, ...], python: Path) -> None:
    """Assert that the environment has the versions that it is named for, and none of the packages left out."""
    versions = dict(package.split("==") for package in packages)
    absent = [module for package, module in ABSENT_UNLESS_NAMED.items() if package not in versions]
    program = (
        "import importlib.metadata as m, importlib.util as u, sys\n"
        f"found = {{name: m.version(name) for name in {sorted(versions)!r}}}\n"
        f"assert found == {versions!r}, found\n"
        f"found = [name for name in {absent!r} if u.find_spec(name.partition('.')[0]) and u.find_spec(name)]\n"
        "assert not found, found\n"
    )
    subprocess.run([python, "-c", program], check=True)


def main(names: list[str]) -> int:
    """Run the tests in each environment; return how many environments failed."""
    failed = []
    for name in names or ENVIRONMENTS:
        packages, tests = ENVIRONMENTS[name]
        folder = ROOT / f".venv-{name}"
        if not (folder / "installed").exists():
            make(packages, folder)
        print(f"== {name}", flush=True)
        check(packages, folder / "bin" / "python")
        pytest = [folder / "bin" / "python", "-m", "pytest", "-n", "auto", "-m", "not slow", *tests]
        if subprocess.run(pytest, cwd=ROOT).returncode != 0:
            failed.append(name)
    print(f"== failed: {', '.join(failed) or 'none'}", flush=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
