"""The command `weblab-local`: one module per command."""

from weblab_local.cli.app import main

__all__ = ["main"]
