"""What can be neither copied nor pickled, since it is in llama.cpp's memory and in a thread: refused by name."""

from typing import NoReturn

from weblab_local.errors import CopyError
from weblab_local.i18n import _


class Uncopyable:
    """Base of such classes. `copy.copy`, `copy.deepcopy` and `pickle` raise CopyError for their objects."""

    _instead = ""
    """What to do instead: a message marked with `n_`."""

    def __reduce__(self) -> NoReturn:
        instead = self._instead
        raise CopyError(
            _("{name} can be neither copied nor pickled: it belongs to a model that is loaded in this process.").format(
                name=type(self).__name__
            ),
            _(instead),
        )
