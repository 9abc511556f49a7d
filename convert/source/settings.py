"""config.json, with all the end tokens that a checkpoint's other files name."""

from pathlib import Path
from typing import Any

from convert.errors import CheckpointError
from convert.source.json_files import AGAIN, read_json
from convert.source.tokenizer_files import end_token

EOS = "eos_token_id"
MORE_EOS = "generation_eos_token_ids"
"""Not a key of transformers' config.json: the end tokens that only generation_config.json names."""


def read_config(folder: Path, tokenizer: Path | None = None) -> dict[str, Any]:
    """Return the content of config.json, with the end tokens of generation_config.json under MORE_EOS.

    Where config.json has no `eos_token_id`, or null, it is the first of those; where both are silent about it, what
    the tokenizer in the folder `tokenizer`, or else in `folder`, calls eos_token. Raises CheckpointError for a
    damaged file.
    """
    config = read_json(folder / "config.json")
    config.pop(MORE_EOS, None)
    more = _of_generation(folder)
    own = config.get(EOS)
    if own is None and more:
        own = config[EOS] = more[0]
    elif own is None and EOS in config:
        own = config[EOS] = end_token(tokenizer or folder)
    more = [token for token in more if token not in (own if isinstance(own, list) else [own])]
    return config | ({MORE_EOS: more} if more else {})


def _of_generation(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    value = read_json(path).get(EOS)
    ends = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ends):
        raise CheckpointError(f"{path}: {EOS} should be a token id or several, and is {value!r}.", AGAIN)
    return ends
