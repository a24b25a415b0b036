"""Disk calls: every call of every command that changes something on the disk fails once, with each of three errors.

python tests/campaigns/disk_calls.py --count 10000 --record

The commands are those of kills.py. The number of a case decides which call fails (open, write, fsync, rename, …) and
whether with EIO, ENOSPC or EINTR; the seed changes nothing. Cases after the last call do nothing. The command must end
well or with one line, the target is new or absent, and the next run completes.
"""

import errno
import random
import sys
from collections import Counter

import kills
from frame import Campaign, main

CASES: list[tuple[kills.Job, int, int]] = []
"""Command, number of its disk call, error: the first call of every command, then the second, and so on."""


def prepare() -> None:
    kills.prepare()
    each = [(job, call, error) for job in kills.JOBS for call in range(job.calls) for error in kills.ERRORS]
    CASES[:] = sorted(each, key=lambda case: case[1])


def case(number: int, rng: random.Random) -> Counter[str]:
    """Let one disk call fail, then let the command complete."""
    if number >= len(CASES):
        return Counter()
    job, call, error = CASES[number]
    kills.clear(job, old=False)
    kills.failing(job, call, error, False, Counter())
    kills.check_completion(job, False)
    return Counter({f"{job.name}: {errno.errorcode[error]}": 1})


CAMPAIGN = Campaign("disk_calls", case, limit=600.0, chunk=8, prepare=prepare)

if __name__ == "__main__":
    sys.exit(main(CAMPAIGN, count=10_000))
