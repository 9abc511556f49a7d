"""Every form of checkpoint is read as torch, safetensors and transformers read it, and none of it before it is used."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from convert.errors import CheckpointError
from convert.model.gpt_neox import Hyperparameters, hyperparameters
from convert.source.checkpoint import open_checkpoint
from convert.source.tensor_files import Dtype, StoredTensor
from tests.support.checkpoints import random_checkpoint
from tests.support.conversions import ROOT, converted

Form = Literal["safetensors", "bin"]
TorchDtype = Literal["float16", "bfloat16", "float32"]

TORCH_DTYPES: dict[Dtype, torch.dtype] = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def small_checkpoint(folder: Path, **options: Any) -> Path:
    return random_checkpoint(folder, hidden=64, intermediate=128, **options)


def as_torch(stored: StoredTensor) -> torch.Tensor:
    return torch.from_numpy(np.array(stored.data)).view(TORCH_DTYPES[stored.dtype])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights as the converter reads them, bit for bit."""
    checkpoint = open_checkpoint(folder)
    read: dict[str, torch.Tensor] = {}
    for shard in checkpoint.shards:
        with checkpoint.open_shard(shard) as stored:
            read |= {name: as_torch(tensor) for name, tensor in stored.items()}
    return read


def weights_of_transformers(folder: Path) -> dict[str, torch.Tensor]:
    return named_as_in_files(GPTNeoXForCausalLM.from_pretrained(folder, dtype="auto").state_dict())


def named_as_in_files(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers 5 calls the head lm_head in memory; in its files the name is embed_out, as ever."""
    return {name.replace("lm_head.", "embed_out."): tensor for name, tensor in state.items()}


def assert_same(read: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype, name
        assert torch.equal(read[name], tensor), name


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_weights_are_those_that_transformers_reads(
    tmp_path: Path, form: Form, shards: int, dtype: TorchDtype
) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, shards=shards, dtype=dtype)
    assert len(list(folder.glob("*.index.json"))) == (shards > 1)
    assert_same(weights(folder), weights_of_transformers(folder))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_each_shard_holds_what_the_library_of_its_format_finds_in_it(tmp_path: Path, form: Form) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, shards=3)
    names = weights_of_transformers(folder).keys()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.shards == sorted(path.name for path in folder.glob(f"*.{form}"))
    for shard in checkpoint.shards:
        path = folder / shard
        expected = load_file(path) if form == "safetensors" else torch.load(path, weights_only=True)
        with checkpoint.open_shard(shard) as stored:
            assert_same(
                {name: as_torch(tensor) for name, tensor in stored.items()},
                {name: tensor for name, tensor in expected.items() if name in names},
            )


@pytest.mark.parametrize("safetensors_shards", [1, 3])
@pytest.mark.parametrize("bin_shards", [1, 3])
def test_safetensors_are_preferred_where_both_are_there(
    tmp_path: Path, safetensors_shards: int, bin_shards: int
) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin", shards=bin_shards, seed=1)
    from_bin = weights(folder)
    small_checkpoint(folder, form="safetensors", shards=safetensors_shards, seed=2)
    assert list(folder.glob("*.bin"))
    assert {Path(shard).suffix for shard in open_checkpoint(folder).shards} == {".safetensors"}
    read = weights(folder)
    assert not torch.equal(read["embed_out.weight"], from_bin["embed_out.weight"])
    assert_same(read, weights_of_transformers(folder))


@pytest.mark.parametrize("mask", [torch.bool, torch.uint8, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_buffers_of_old_checkpoints_are_dropped_whatever_their_type(
    tmp_path: Path, form: Form, mask: torch.dtype
) -> None:
    """Masks were uint8 before transformers 4.28 (Pythia has them so), bool after it."""
    plain = small_checkpoint(tmp_path / "plain" / "model")
    folder = small_checkpoint(tmp_path / "old" / "model", form=form)
    state = load_file(plain / "model.safetensors")
    for layer in range(2):
        prefix = f"gpt_neox.layers.{layer}.attention."
        state[prefix + "bias"] = torch.ones(1, 1, 64, 64).tril().to(mask)
        state[prefix + "masked_bias"] = torch.tensor(-1e9)
        state[prefix + "rotary_emb.inv_freq"] = torch.ones(4)
    if form == "safetensors":
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    else:
        torch.save(state, folder / "pytorch_model.bin")
    assert_same(weights(folder), weights_of_transformers(plain))
    (old,), (new,) = converted(folder, tmp_path / "a", "Q8_0"), converted(plain, tmp_path / "b", "Q8_0")
    assert old.read_bytes() == new.read_bytes()


def test_parameters_saved_with_their_gradient_and_transposed_tensors_are_read_like_any_other(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin")
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype="auto")
    parameters = named_as_in_files(dict(model.named_parameters()))
    parameters["embed_out.weight"] = torch.nn.Parameter(parameters["embed_out.weight"].detach().T.contiguous().T)
    assert all(parameter.requires_grad for parameter in parameters.values())
    torch.save(parameters, folder / "new.bin")
    (folder / "new.bin").replace(folder / "pytorch_model.bin")  # which transformers has mapped
    assert_same(weights(folder), named_as_in_files(model.state_dict()))


def test_the_two_forms_of_a_checkpoint_become_the_same_file(tmp_path: Path) -> None:
    first = small_checkpoint(tmp_path / "1" / "model", form="safetensors", config_form="new")
    second = small_checkpoint(tmp_path / "2" / "model", form="bin", shards=3, config_form="old")
    (a,), (b,) = converted(first, tmp_path / "a", "F16"), converted(second, tmp_path / "b", "F16")
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_value_becomes_the_float32_that_torch_makes_of_it(dtype: Dtype) -> None:
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    expected = torch.from_numpy(bits.copy()).view(TORCH_DTYPES[dtype])
    stored = StoredTensor(dtype, bits.view(np.float16) if dtype == "F16" else bits)
    finite = torch.isfinite(expected).numpy()
    np.testing.assert_array_equal(stored.read(), expected.float().numpy())
    assert stored.is_finite(stored.data[finite])
    assert not any(stored.is_finite(value) for value in np.split(stored.data[~finite], (~finite).sum()))


def test_infinity_and_nan_are_found_among_float32_values() -> None:
    extremes = np.array([np.finfo(np.float32).max, np.finfo(np.float32).tiny, -0.0], np.float32)
    stored = StoredTensor("F32", extremes)
    assert stored.is_finite(extremes)
    assert np.shares_memory(stored.read(), extremes)
    for value in (np.inf, -np.inf, np.nan):
        assert not stored.is_finite(np.append(extremes, np.float32(value)))


def assert_as_in_transformers(hparams: Hyperparameters, folder: Path) -> None:
    config: Any = GPTNeoXConfig.from_pretrained(folder)
    rope = config.rope_parameters
    assert hparams == Hyperparameters(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        layer_norm_eps=config.layer_norm_eps,
        use_parallel_residual=config.use_parallel_residual,
        hidden_act=config.hidden_act,
        tie_word_embeddings=config.tie_word_embeddings,
        rotary_dimensions=int(config.hidden_size // config.num_attention_heads * rope["partial_rotary_factor"]),
        rope_theta=rope["rope_theta"],
        rope_scaling_factor=rope.get("factor", 1.0),
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotary_pct": 0.5, "rotary_base": 25000.0},
        {"rotary_pct": 1.0, "use_parallel_residual": False, "layer_norm_eps": 1e-6},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "max_position_embeddings": 512},
        {"hidden_act": "gelu_new", "tie_word_embeddings": True, "bos_token_id": 1},
    ],
    ids=str,
)
def test_both_forms_of_config_json_give_the_hyperparameters_of_transformers(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    old = small_checkpoint(tmp_path / "old", config_form="old", **options)
    new = small_checkpoint(tmp_path / "new", config_form="new", **options)
    assert "rope_parameters" not in open_checkpoint(old).config
    assert "rotary_pct" not in open_checkpoint(new).config
    from_old, from_new = (hyperparameters(open_checkpoint(folder).config) for folder in (old, new))
    assert from_old == from_new
    assert_as_in_transformers(from_old, old)
    assert_as_in_transformers(from_new, new)


def test_what_config_json_leaves_out_has_the_default_of_transformers(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    written = {"model_type": "gpt_neox", "vocab_size": 330, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert_as_in_transformers(hyperparameters(written), tmp_path)


def test_of_several_end_tokens_the_first_is_taken(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model")
    edit_json(folder / "config.json", eos_token_id=[3, 0])
    assert hyperparameters(open_checkpoint(folder).config).eos_token_id == 3


def test_safetensors_are_mapped_and_not_read(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", shards=3)
    checkpoint = open_checkpoint(folder)
    for shard in checkpoint.shards:
        with checkpoint.open_shard(shard) as stored:
            for tensor in stored.values():
                assert isinstance(tensor.data, np.memmap)
                assert Path(str(tensor.data.filename)) == folder / shard
                assert tensor.data.mode == "r"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc tells what memory is a file's")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_bin_is_mapped_and_not_read(tmp_path: Path, dtype: TorchDtype) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin", shards=3, dtype=dtype)
    checkpoint = open_checkpoint(folder)
    for shard in checkpoint.shards:
        with checkpoint.open_shard(shard) as stored:
            mapped = mapped_ranges(folder / shard)
            for name, tensor in stored.items():
                start = tensor.data.ctypes.data
                assert any(low <= start and start + tensor.data.nbytes <= high for low, high in mapped), name


def mapped_ranges(path: Path) -> list[tuple[int, int]]:
    """The addresses in this process that are pages of `path`."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    return [(int(low, 16), int(high, 16)) for low, high in (line[0].split("-") for line in lines)]


def test_a_shard_is_fetched_before_it_is_opened_and_released_after_it(tmp_path: Path) -> None:
    """So that --low-disk can hold one shard at a time: none has to be there when the checkpoint is opened."""
    folder = small_checkpoint(tmp_path / "model", shards=3)
    hub = tmp_path / "hub"
    hub.mkdir()
    for path in folder.glob("*.safetensors"):
        path.rename(hub / path.name)

    def fetch(shard: str) -> None:
        (folder / shard).write_bytes((hub / shard).read_bytes())

    def release(shard: str) -> None:
        (folder / shard).unlink()

    checkpoint = open_checkpoint(folder, fetch, release)
    for shard in checkpoint.shards:
        assert not list(folder.glob("*.safetensors"))
        with checkpoint.open_shard(shard) as stored:
            assert [path.name for path in folder.glob("*.safetensors")] == [shard]
            assert {name for name, file in checkpoint.weight_map.items() if file == shard} == stored.keys()
    assert not list(folder.glob("*.safetensors"))
    with pytest.raises(CheckpointError, match=r"model-00001-of-\d+\.safetensors is missing"):
        open_checkpoint(folder)


def modules_after(code: str, *arguments: str | Path) -> set[str]:
    """The modules that a fresh Python has imported once it has run `code`."""
    script = f"{code}\nimport sys; print(*sys.modules)"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(("form", "with_torch"), [("safetensors", False), ("bin", True)])
def test_torch_is_imported_for_a_bin_and_never_for_safetensors(tmp_path: Path, form: Form, with_torch: bool) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form)
    code = """if True:
        import sys
        from pathlib import Path
        from convert.run import Request, run
        run(Request(sys.argv[1], None, ["Q8_0", "F16"], Path(sys.argv[2])))
    """
    imported = modules_after(code, folder, tmp_path / "output")
    assert ("torch" in imported) == with_torch
    assert "transformers" not in imported


def test_help_imports_nothing_that_is_slow() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "convert", "--help"]
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "--quant" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "gguf", "numpy", "transformers", "safetensors", "huggingface_hub", "llama_cpp"}
