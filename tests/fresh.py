"""A command in a new process, and which modules it imports there."""

import json
import subprocess
import sys
from collections.abc import Iterable
from typing import NamedTuple

PROGRAM = """
import json, sys
from lepmerge.commands.main import main
code = 0
try:
    main({arguments!r})
except SystemExit as end:
    code = end.code or 0
print(json.dumps([code, sorted({modules!r} & sys.modules.keys())]))
"""


class Done(NamedTuple):
    """code: exit code. imported: which of the modules in question. stdout: lines of the command."""

    code: int
    imported: list[str]
    stdout: list[str]
    stderr: str


def command(arguments: Iterable[object], *modules: str) -> Done:
    """Run `lepmerge` with these arguments, and look for these modules afterwards."""
    program = PROGRAM.format(arguments=[str(each) for each in arguments], modules=set(modules))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *stdout, last = done.stdout.splitlines()
    return Done(*json.loads(last), stdout, done.stderr)
