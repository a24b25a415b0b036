"""Changes to pages while the site is built. The pages in docs/ are read on a code host, too."""

import re

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")
"""A link to a file outside docs/, which the site does not contain."""


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace links to files outside docs/ by their text."""
    return OUTSIDE.sub(r"\1", markdown)
