"""An OpenAI-compatible server on one engine, and its page: extra `[server]`, command `weblab-local serve`."""
