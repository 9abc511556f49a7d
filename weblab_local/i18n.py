"""What a person reads, in Japanese or English: by the locale, or as chosen with `use`.

Messages are written in English in the code, as `_("...")`; the Japanese ones are in locale/ja/LC_MESSAGES.
"""

import gettext
import locale
import os
from pathlib import Path
from typing import Literal

Language = Literal["ja", "en"]

DOMAIN = "weblab_local"
LOCALE_DIR = Path(__file__).parent / "locale"

_VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")

_catalog: gettext.NullTranslations | None = None


def system_language() -> Language:
    """Japanese where the locale is, else English."""
    for variable in _VARIABLES:
        value = os.environ.get(variable)
        if value:
            return "ja" if value.startswith("ja") else "en"
    name = locale.getlocale()[0] or ""
    return "ja" if name.lower().startswith("ja") else "en"


def use(language: Language | None) -> None:
    """Speak `language` from now on; None is the locale's."""
    global _catalog
    languages = [language or system_language()]
    _catalog = gettext.translation(DOMAIN, LOCALE_DIR, languages, fallback=True)


def _(message: str) -> str:
    """`message` in the language in use."""
    if _catalog is None:
        use(None)
    assert _catalog is not None
    return _catalog.gettext(message)
