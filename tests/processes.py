"""Start `lepmerge` in two processes that talk over gloo on the CPU."""

import os
import socket
import subprocess
import sys


def started(*arguments: object, **variables: str) -> list[subprocess.Popen[str]]:
    """Start two processes without a launcher: `accelerate launch --cpu` would start one, whatever its number says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, "-m", "lepmerge", *map(str, arguments), "--device", "cpu"]
    return [
        subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **address, **variables, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
                 "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]  # fmt: skip


def run_by_two(*arguments: object, **variables: str) -> list[str]:
    """Run two processes to their end and return what each printed on stdout. Both must succeed."""
    found = []
    for process in started(*arguments, **variables):
        output, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors[-3000:]
        found.append(output)
    return found
