"""Languages by their ISO 639-1 code: their Unicode scripts, and a request in the language for calibration."""

from dataclasses import dataclass

from lepmerge.errors import OptionError

CODES_OF: dict[tuple[str, ...], str] = {
    ("Cyrillic",): "ab av ba be bg ce cv kk kv ky mk mn os ru sr tg tt uk",
    (): "af az br ca cs cy da de en eo es et eu fi fo fr ga gd gl ha hr ht hu id ig is it jv ku la lb lt lv mg mi ms "
    "mt nb nl nn no oc om pl pt qu rm ro rw sk sl sn so sq st su sv sw tk tl tn tr uz vi wo xh yo zu",
    ("Arabic",): "ar fa ps sd ug ur",
    ("Greek",): "el",
    ("Georgian",): "ka",
    ("Armenian",): "hy",
    ("Hebrew",): "he yi",
    ("Devanagari",): "hi mr ne sa",
    ("Bengali",): "as bn",
    ("Gujarati",): "gu",
    ("Gurmukhi",): "pa",
    ("Oriya",): "or",
    ("Tamil",): "ta",
    ("Telugu",): "te",
    ("Kannada",): "kn",
    ("Malayalam",): "ml",
    ("Sinhala",): "si",
    ("Thai",): "th",
    ("Lao",): "lo",
    ("Khmer",): "km",
    ("Myanmar",): "my",
    ("Tibetan",): "bo dz",
    ("Ethiopic",): "am ti",
    ("Hangul",): "ko",
    ("Han",): "zh",
    ("Han", "Hiragana", "Katakana"): "ja",
}
"""Unicode scripts of new tokens → codes of the languages. Latin letters occur in every text, so new tokens
of languages in Latin script are not restricted."""
REQUESTS = {
    "be": "Перакажы коратка:",
    "bg": "Обобщи накратко:",
    "cs": "Stručně shrň:",
    "de": "Fasse kurz zusammen:",
    "el": "Κάνε μια σύντομη περίληψη:",
    "es": "Resume brevemente:",
    "fr": "Résume brièvement :",
    "it": "Riassumi brevemente:",
    "nl": "Vat kort samen:",
    "pl": "Streść krótko:",
    "pt": "Resume brevemente:",
    "ru": "Перескажи кратко:",
    "sv": "Sammanfatta kort:",
    "tr": "Kısaca özetle:",
    "uk": "Перекажи коротко:",
}
DEFAULT_REQUEST = "Summarize briefly:"


@dataclass(frozen=True)
class Language:
    """A language. scripts: Unicode scripts of its new tokens, empty for no restriction."""

    code: str
    scripts: tuple[str, ...]
    request: str
    """Begins a prompt that is made of a text."""


def language_of(code: str) -> Language:
    """Return the language with this ISO 639-1 code.

    Raises:
        OptionError: the code is not in the table.
    """
    for scripts, codes in CODES_OF.items():
        if code in codes.split():
            return Language(code, scripts, REQUESTS.get(code, DEFAULT_REQUEST))
    known = [each for codes in CODES_OF.values() for each in codes.split()]
    near = f" (did you mean {code.lower()[:2]}?)" if code.lower()[:2] in known else ""
    raise OptionError(f"--language {code}: expected an ISO 639-1 code such as ru, de or ka{near}")
