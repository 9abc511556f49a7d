"""The app that `make app` builds. Not part of `make test`: `make test-app` builds it and runs these."""
