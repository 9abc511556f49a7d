"""An OpenAI-compatible server on one engine, and its page: extra `[server]`, command `weblab-local serve`."""

from weblab_local.interpreter import import_sysconfig

import_sysconfig()  # before what imports pydantic
