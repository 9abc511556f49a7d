"""An interpreter inside of an app: what it may lack that others have, and what others' packages need."""

import sys
from pathlib import Path


def import_sysconfig() -> None:
    """Import `sysconfig`, as pydantic does through zoneinfo, also where there is no sys.executable.

    It looks at the working directory then, and raises FileNotFoundError where that is gone.
    """
    executable = sys.executable
    if not executable:
        sys.executable = str(Path(sys.prefix, "python"))
    try:
        import sysconfig  # noqa: F401
    finally:
        sys.executable = executable
