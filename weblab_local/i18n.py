"""What a person reads, in Japanese or English: by the locale, or as chosen with `use`.

Messages are written in English in the code, as `_("...")` with named placeholders that are filled in afterwards, or as
`n_("...")` where `_` comes later. The Japanese ones are in locale/ja/LC_MESSAGES/weblab_local.po; after an edit there:

    pybabel compile --domain weblab_local --directory weblab_local/locale
"""

import gettext
import locale
import os
import re
from pathlib import Path
from typing import Literal

Language = Literal["ja", "en"]

DOMAIN = "weblab_local"
LOCALE_DIR = Path(__file__).parent / "locale"

_LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")

_catalog: gettext.NullTranslations | None = None
_language: Language = "en"


def system_language() -> Language:
    """Japanese where the system's first choice of the two is that, else English.

    As in GNU gettext: LANGUAGE is a list of languages, the best first, and counts unless the locale is C or POSIX; the
    locale is the first of LC_ALL, LC_MESSAGES and LANG that is not empty. Windows sets none of them: there Python asks
    the system. For a program that macOS starts outside of its terminal nobody does, so that it speaks English; an app
    asks the system itself and calls `use`.
    """
    name = next(filter(None, map(os.environ.get, _LOCALE_VARIABLES)), "")
    wanted = os.environ.get("LANGUAGE", "")
    if wanted and name not in ("C", "POSIX"):
        return next((language for part in wanted.split(":") if (language := _spoken(part))), "en")
    if not name:
        try:
            name = locale.getlocale()[0] or ""
        except ValueError:  # a name that Python cannot take apart
            name = ""
    return _spoken(name) or "en"


def _spoken(name: str) -> Language | None:
    """The language of a locale's name: ja_JP.UTF-8, ja-JP, Japanese_Japan.932; None for one that is not spoken here."""
    names: dict[str, Language] = {"ja": "ja", "japanese": "ja", "en": "en", "english": "en", "c": "en", "posix": "en"}
    return names.get(re.split(r"[_.@-]", name)[0].lower())


def use(language: Language | None) -> None:
    """Speak `language` from now on; None is the locale's."""
    global _catalog, _language
    _language = language or system_language()
    _catalog = gettext.translation(DOMAIN, LOCALE_DIR, [_language], fallback=True)


def language_in_use() -> Language:
    """The language that `_` speaks."""
    if _catalog is None:
        use(None)
    return _language


def _(message: str) -> str:
    """`message` in the language in use."""
    if _catalog is None:
        use(None)
    assert _catalog is not None
    return _catalog.gettext(message)


def n_(message: str) -> str:
    """`message` as it is: marks a text for the catalog that `_` translates when it is shown."""
    return message
