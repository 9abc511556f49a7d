"""`python -m weblab_local` is `weblab-local`."""

from weblab_local.cli import main

main()
