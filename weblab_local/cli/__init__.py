"""The command `weblab-local`: one module per command, imported when it is called."""

from weblab_local.cli.app import main

__all__ = ["main"]
