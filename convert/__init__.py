"""Conversion of a GPT-NeoX checkpoint to GGUF in one streaming pass. Runs from a checkout: `python -m convert`."""
