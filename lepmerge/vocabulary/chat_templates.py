"""The chat templates of a folder.

transformers reads chat_template.jinja and additional_chat_templates/NAME.jinja. In older folders tokenizer_config.json
contains the template, or several named ones as a list or an object. The name of the template in use is `default`.
"""

from pathlib import Path

from lepmerge.errors import VocabularyError
from lepmerge.vocabulary.token_names import read_object

CONFIG = "tokenizer_config.json"
DEFAULT = "default"
TEMPLATES = "additional_chat_templates"
"""The only subfolder of a model's folder that is written."""


def templates_in(folder: Path) -> dict[str, str]:
    """Return name → chat template of a model's folder, as transformers reads them; {} if it has none.

    Raises:
        VocabularyError: a file is not UTF-8 text, or tokenizer_config.json has something else in place of a template.
    """
    own = read_object(folder / CONFIG).get("chat_template")
    found: dict[str, str] = {}
    try:
        if isinstance(own, list):
            own = {entry["name"]: entry["template"] for entry in own}
        found = dict(own) if isinstance(own, dict) else {} if own is None else {DEFAULT: own}
        valid = all(isinstance(text, str) for item in found.items() for text in item)
    except (KeyError, TypeError):
        valid = False
    if not valid:
        raise VocabularyError(
            f"{folder / CONFIG}: chat_template should be a text or a list of objects with `name` and `template`, not "
            f"{own!r:.60}: correct it"
        )
    files = {path.stem: path for path in sorted(folder.glob(f"{TEMPLATES}/*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files[DEFAULT] = folder / "chat_template.jinja"
    for name, path in files.items():
        try:
            found[name] = path.read_text(encoding="utf-8")
        except ValueError as error:
            raise VocabularyError(f"{path} is not UTF-8 text: save it as such") from error
    return found
