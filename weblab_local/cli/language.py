"""`--lang`, the option of every command, and where a command line says it."""

from collections.abc import Sequence
from typing import Annotated, get_args

import typer

from weblab_local.i18n import Language

Lang = Annotated[
    Language | None, typer.Option(help="Language of messages and help.", show_default="the system's", is_eager=True)
]


def language_asked(args: Sequence[str]) -> Language | None:
    """The language of the last `--lang` on a command line, wherever it stands; None where there is no valid one.

    Help and usage errors need it before the command line is parsed, or when it cannot be.
    """
    languages: dict[str, Language] = {language: language for language in get_args(Language)}
    asked = None
    for word, following in zip(args, [*args[1:], ""], strict=False):
        option, _equals, value = word.partition("=")
        if option == "--":
            break
        if option == "--lang":
            asked = languages.get(value or following, asked)
    return asked
