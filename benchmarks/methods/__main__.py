"""Run the study of the methods: python benchmarks/methods --help"""

import sys
from pathlib import Path


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    sys.path += [str(root / "benchmarks"), str(root / "recipes/quickstart")]
    import study

    study.main()


if __name__ == "__main__":
    main()
