"""Whether a launcher started several processes of this command. Needs no torch."""

import os


def is_launched() -> bool:
    """Return whether this process is one of several that `accelerate launch` or another launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
