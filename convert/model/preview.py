"""A checkpoint as its small files describe it: what cannot be converted is refused before any weight is fetched."""

from pathlib import Path

from convert.model.gpt_neox import hyperparameters, tensor_names
from convert.model.vocab import read_vocabulary
from convert.source.checkpoint import Checkpoint, open_checkpoint
from convert.source.other_forms import require_unquantized
from convert.source.settings import read_config
from convert.source.tokenizer_files import tokenizer_json
from convert.source.weight_files import INDEX_FILES


def preview(folder: Path, tokenizer: Path | None = None, with_tokenizer: bool = True) -> Checkpoint:
    """Return the checkpoint in `folder`, to plan with and not to read: its shards need not be there.

    Where there is no index, its tensors are taken to be those that config.json calls for. Raises ConversionError for
    a model, a tokenizer (if it is wanted `with_tokenizer`) or weights that cannot be converted, as far as the small
    files tell.
    """
    config = read_config(folder, tokenizer)
    hparams = hyperparameters(config)
    checkpoint = Checkpoint(folder, config, dict.fromkeys(tensor_names(hparams), ""), tokenizer=tokenizer)
    if with_tokenizer:
        read_vocabulary(tokenizer_json(checkpoint.tokenizer_folder), hparams.vocab_size)
    if any((folder / name).is_file() for name in INDEX_FILES):
        return open_checkpoint(folder, lambda _: None, tokenizer=tokenizer)
    require_unquantized(folder, config, ())
    return checkpoint
