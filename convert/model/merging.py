"""LoRAs onto the checkpoint that they were made for: every name and shape is looked up there before a weight is read.

Lora: modules, scaling --> Checkpoint.changes: tensors, what is added to them or put in their place
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from convert.errors import CheckpointError, UnsupportedModelError
from convert.model.gpt_neox import EMBEDDING, OUTPUT, hyperparameters, linear_modules, tensor_shapes
from convert.source.checkpoint import Change, Checkpoint
from convert.source.lora import Lora
from convert.source.low_rank import LowRank, LowRankEmbedding, ScaledBias
from convert.source.names import OUTPUT_NAMES
from convert.source.source import Source
from convert.source.tensor_files import Added, StoredTensor
from convert.source.tokenizer_files import TOKENIZERS, tokenizer_json

Shape = tuple[int, ...]


def merged(checkpoint: Checkpoint, base: Source, loras: Sequence[Lora], report: Callable[[str], None]) -> Checkpoint:
    """Return the checkpoint with the `loras` in it: whoever opens its shards sees the merged weights, in float32.

    Where an adapter brings the rows of a larger vocabulary, the settings say so, and its tokenizer is the checkpoint's
    unless another was chosen. `report` is told of a base that has another name than the adapter says. Raises
    CheckpointError where an adapter does not fit the checkpoint, UnsupportedModelError where it cannot be merged.
    """
    for lora in loras:
        _warn_of_another_base(lora, base, report)
        checkpoint = _with(checkpoint, base.name, lora)
    return checkpoint


def _with(checkpoint: Checkpoint, base: str, lora: Lora) -> Checkpoint:
    checkpoint = _with_vocabulary(checkpoint, lora)
    hparams = hyperparameters(checkpoint.config)
    shapes = tensor_shapes(hparams)
    modules = [*linear_modules(hparams.num_hidden_layers), EMBEDDING]
    _require_known(lora, base, lora.pairs.keys() | lora.biases.keys(), modules)
    _require_known(lora, base, lora.whole, [name for name in checkpoint.weight_map if name in shapes])
    _require_all_targets(lora, modules)
    added = {f"{module}.weight": _added(lora, base, module, shapes) for module in lora.pairs}
    for module, bias in lora.biases.items():
        if f"{module}.bias" not in checkpoint.weight_map:
            raise _not_in_base(lora, base, f"{module}.bias")
        _require_shape(lora, base, f"lora_B.bias of {module}", bias.data.shape, shapes[f"{module}.bias"])
        added[f"{module}.bias"] = ScaledBias(bias, lora.scaling(module))
    for name, tensor in lora.whole.items():
        _require_shape(lora, base, name, tensor.data.shape, shapes[name])
    touched = added.keys() | lora.whole.keys()
    if hparams.tie_word_embeddings and touched & {f"{EMBEDDING}.weight", f"{OUTPUT}.weight"}:
        raise UnsupportedModelError(
            f"{lora.config.where} changes the embedding or the output matrix, which are one and the same in {base}.",
            "Such a base cannot have them changed apart. Merge it with peft, save the result, and convert that.",
        )
    for name in touched & checkpoint.changes.keys():
        if name in lora.whole or checkpoint.changes[name].whole is not None:
            raise UnsupportedModelError(
                f"Two adapters change {name}, and one of them brings it whole.", "Give one of them alone."
            )
    changes = {name: _changed(checkpoint.changes.get(name, Change()), lora.whole, added, name) for name in touched}
    return replace(
        checkpoint,
        changes={**checkpoint.changes, **changes},
        adapters=[*checkpoint.adapters, lora.adapter],
    )


def _changed(before: Change, whole: Mapping[str, StoredTensor], added: Mapping[str, Added], name: str) -> Change:
    more = [added[name]] if name in added else []
    return Change(whole.get(name, before.whole), [*before.added, *more])


def _added(lora: Lora, base: str, module: str, shapes: Mapping[str, Shape]) -> Added:
    """What is added to the module's weight. Raises CheckpointError for shapes of another model."""
    a, b = lora.pairs[module]
    rows, columns = shapes[f"{module}.weight"]
    rank = lora.config.rank(lora.saved_names[module])
    first, second = (columns, rows) if module != EMBEDDING else (rows, columns)
    _require_shape(lora, base, f"lora_A of {module}", a.data.shape, (rank, first))
    _require_shape(lora, base, f"lora_B of {module}", b.data.shape, (second, rank))
    kind = LowRank if module != EMBEDDING else LowRankEmbedding
    return kind(a, b, lora.scaling(module))


def _require_known(lora: Lora, base: str, names: Collection[str], known: Collection[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise _not_in_base(lora, base, *unknown)


def _not_in_base(lora: Lora, base: str, *names: str) -> CheckpointError:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return CheckpointError(
        f"{lora.config.where} changes what {base} has not: {', '.join(names[:3])}{more}.", _other_model(lora)
    )


def _require_shape(lora: Lora, base: str, what: str, found: Shape, expected: Shape) -> None:
    if found != expected:
        raise CheckpointError(
            f"{lora.config.where}: {what} is {_shape(found)}, and {base} with its rank calls for {_shape(expected)}.",
            _other_model(lora),
        )


def _other_model(lora: Lora) -> str:
    return f"It was made for another model{f': {lora.config.base}' if lora.config.base else ''}; give that as SOURCE."


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _require_all_targets(lora: Lora, modules: Sequence[str]) -> None:
    """Raise CheckpointError unless the weights hold a LoRA for exactly the modules that the settings name."""

    def is_target(module: str) -> bool:
        names = OUTPUT_NAMES if module == OUTPUT else (module,)
        return any(lora.config.targets(name) for name in names)

    if lora.config.target_modules is None:
        return
    wanted = {module for module in modules if is_target(module)}
    for names, problem in ((wanted - lora.pairs.keys(), "lack"), (lora.pairs.keys() - wanted, "hold, unasked for,")):
        if names:
            raise CheckpointError(
                f"{lora.config.where}: the weights {problem} {min(names)}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                + ", by the target_modules and layers of adapter_config.json.",
                f"It was not saved whole, or the two files are not of one adapter. Or: {_other_model(lora)}",
            )


def _with_vocabulary(checkpoint: Checkpoint, lora: Lora) -> Checkpoint:
    """The checkpoint with as many entries as the adapter brings rows for.

    Raises CheckpointError where the adapter's own tokenizer has more than there are rows.
    """
    hparams = hyperparameters(checkpoint.config)
    own = any((lora.adapter.folder / name).is_file() for name in TOKENIZERS)
    rows = {
        name: len(tensor.data)
        for name in (f"{EMBEDDING}.weight", f"{OUTPUT}.weight")
        if (tensor := lora.whole.get(name)) is not None and tensor.data.ndim == 2
    }
    n_rows = max(rows.values(), default=hparams.vocab_size)
    if n_rows > hparams.vocab_size and (len(rows) < 2 or len(set(rows.values())) > 1):
        raise CheckpointError(
            f"The vocabulary of {lora.config.where} grew from {hparams.vocab_size} to {n_rows}, but it does not bring "
            "as many rows of both the embedding and the output matrix.",
            "Save it with save_embedding_layers=True.",
        )
    if checkpoint.tokenizer is None and own and (highest := _highest_id(lora.adapter.folder)) >= n_rows:
        raise CheckpointError(
            f"The vocabulary of {lora.config.where} grew: its tokenizer has ids up to {highest}, but there are only "
            f"{n_rows} rows in the embedding, and the adapter brings none of its own.",
            "Save it with save_embedding_layers=True. If none of the added tokens is used, give the base's folder as "
            "--tokenizer.",
        )
    if n_rows <= hparams.vocab_size:
        return checkpoint
    config = {**checkpoint.config, "vocab_size": n_rows}
    return replace(checkpoint, config=config, tokenizer=checkpoint.tokenizer or (lora.adapter.folder if own else None))


def _highest_id(folder: Path) -> int:
    tokenizer = tokenizer_json(folder)
    added: list[int] = [entry["id"] for entry in tokenizer.get("added_tokens") or []]
    return int(max([*tokenizer["model"]["vocab"].values(), *added]))


def _warn_of_another_base(lora: Lora, base: Source, report: Callable[[str], None]) -> None:
    named, revision = lora.config.base, lora.config.revision
    if named and _last(named) not in (base.name.lower(), _last(base.repository)):
        report(f"The adapter {lora.adapter.name} says that it was made for {named}; the base here is {base.name}.")
    elif len(revision) == 40 and base.revision and revision != base.revision:
        report(
            f"The adapter {lora.adapter.name} says that it was made for the revision {revision[:12]} of {named}; "
            f"this is {base.revision[:12]}."
        )


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
