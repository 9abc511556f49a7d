"""What cannot be converted is refused: the message names the culprit, and nothing is left in the output folder."""

import json
import math
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.checkpoint import open_checkpoint
from convert.errors import CheckpointError, ConversionError, OutputError, UnsupportedModelError
from convert.gpt_neox import hyperparameters, map_tensors
from convert.mixtures import MIXTURES
from tests.checkpoints import DTYPES, random_checkpoint
from tests.conversions import converted, files_in, run_convert
from weblab_local.model_store import demo_model

Form = Literal["safetensors", "bin"]
State = dict[str, torch.Tensor]

FIRST, LAST = "gpt_neox.embed_in.weight", "embed_out.weight"
NORM = "gpt_neox.final_layer_norm.bias"
FILES = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
INDEXES = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NAN, INFINITY = math.nan, math.inf


def small_checkpoint(folder: Path, **options: Any) -> Path:
    return random_checkpoint(folder, **{"hidden": 64, "intermediate": 128} | options)


@pytest.fixture(scope="module")
def sound_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def checkpoint(sound_checkpoint: Path, tmp_path: Path) -> Path:
    """A sound one, for the test to damage."""
    return shutil.copytree(sound_checkpoint, tmp_path / "model")


def refusal(source: Path | str, output: Path, *quants: str) -> ConversionError:
    """The error that the conversion of `source` ends with, having left nothing behind."""
    with pytest.raises(ConversionError) as caught:
        converted(Path(source), output, *(quants or ["Q8_0"]))
    assert not output.is_dir() or files_in(output) == []
    return caught.value


def assert_refused(
    source: Path, *culprits: str, quants: tuple[str, ...] = (), kind: type[ConversionError] = CheckpointError
) -> None:
    error = refusal(source, source.parent / "output", *quants)
    assert type(error) is kind, error
    for culprit in culprits:
        assert culprit in error.message
    assert error.remedy


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, edit: Callable[[State], Any], form: Form = "safetensors") -> None:
    """Change the only shard: `edit` changes the state dict it is given, or gives what takes its place."""
    path = folder / FILES[form]
    state = {name: tensor.clone() for name, tensor in read_state(path).items()}
    edited = edit(state)
    state = state if edited is None else edited
    if form == "safetensors":
        save_file(state, path, {"format": "pt"})
    else:
        torch.save(state, path)


def read_state(path: Path) -> State:
    state: State = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return state


def put(*keys_and_value: Any) -> Callable[[Any], Any]:
    """A change to nested lists and dicts: what is at the keys becomes the value."""
    *path, last, value = keys_and_value

    def edit(target: Any) -> None:
        for key in path:
            target = target[key]
        target[last] = value

    return edit


# --- shards and their index -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_the_checkpoint_that_is_damaged_below_can_be_converted_as_it_is(
    tmp_path: Path, form: Form, shards: int
) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, shards=shards)
    converted(folder, tmp_path / "output", "Q8_0")
    assert files_in(tmp_path / "output") == ["model-Q8_0.gguf", "model-Q8_0.json"]


@pytest.mark.parametrize("number", [0, 1, -1])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_missing_shard_is_named(tmp_path: Path, form: Form, number: int) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, shards=3)
    shard = sorted(folder.glob(f"*.{form}"))[number]
    shard.unlink()
    assert_refused(folder, shard.name, "missing", str(folder))


@pytest.mark.parametrize("length", [0, 1, 3, 4, 7, 8, 100, 0.1, 0.5, 0.9, -30, -1])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_shard_that_was_cut_off_is_named(tmp_path: Path, form: Form, shards: int, length: float) -> None:
    """`length`: bytes that are left, or as a fraction of all, or below 0 those that are lost."""
    folder = small_checkpoint(tmp_path / "model", form=form, shards=shards)
    shard = sorted(folder.glob(f"*.{form}"))[-1]
    size = shard.stat().st_size
    os.truncate(shard, int(size * length) if isinstance(length, float) else length % size if length < 0 else length)
    assert_refused(folder, shard.name, "damaged")


def test_a_shard_with_more_bytes_than_its_header_lists_is_named(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert_refused(checkpoint, "model.safetensors", "damaged")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_damaged_byte_in_the_list_of_tensors_brings_no_other_exception(tmp_path: Path, form: Form) -> None:
    """An unpickler that meets damage may raise anything: KeyError, struct.error, UnicodeDecodeError."""
    folder = small_checkpoint(tmp_path / "model", form=form, layers=1)
    path = folder / FILES[form]
    sound = path.read_bytes()
    if form == "safetensors":
        start, stop = 0, 8 + int.from_bytes(sound[:8], "little")
    else:
        start, stop = sound.index(b"data.pkl"), sound.index(b".format_version")
    chance = random.Random(0)
    refused = 0
    for _ in range(100):
        position = chance.randrange(start, stop)
        new = folder / "new"  # never over a file that may be mapped
        new.write_bytes(sound[:position] + chance.randbytes(1) + sound[position + 1 :])
        new.replace(path)
        try:
            with open_checkpoint(folder).open_shard(path.name) as stored:
                map_tensors(hyperparameters(open_checkpoint(folder).config), stored)
        except (CheckpointError, UnsupportedModelError):
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tensor_that_the_index_promises_and_the_shard_lacks_is_named(tmp_path: Path, form: Form) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, shards=3)
    shard = folder / json.loads((folder / INDEXES[form]).read_text())["weight_map"][LAST]
    state = {name: tensor.clone() for name, tensor in read_state(shard).items() if name != LAST}
    if form == "safetensors":
        save_file(state, shard, {"format": "pt"})
    else:
        torch.save(state, shard)
    assert_refused(folder, f"{shard.name} holds {LAST}", "index")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tensor_that_lies_in_another_shard_than_the_index_says_is_named(tmp_path: Path, form: Form) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, shards=3)
    index = folder / INDEXES[form]
    weight_map = json.loads(index.read_text())["weight_map"]
    other = next(shard for shard in weight_map.values() if shard != weight_map[LAST])
    edit_json(index, weight_map=weight_map | {LAST: other})
    assert_refused(folder, LAST, "index")


def test_a_tensor_that_the_index_does_not_list_is_named(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", shards=3)
    weight_map = json.loads((folder / INDEXES["safetensors"]).read_text())["weight_map"]
    path = folder / weight_map[NORM]
    save_file({name: tensor.clone() for name, tensor in load_file(path).items()} | {"more": torch.ones(2)}, path)
    assert_refused(folder, path.name, "more", "index")


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "folder/x.safetensors", "..", ".", "", 1, None, ["x.safetensors"]],
    ids=repr,
)
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path, shard: Any) -> None:
    folder = small_checkpoint(tmp_path / "model", shards=3)
    (folder / "folder").mkdir()
    for path in (tmp_path / "x.safetensors", folder / "folder" / "x.safetensors"):
        save_file({LAST: torch.ones(330, 64)}, path)
    index = folder / INDEXES["safetensors"]
    edit_json(index, weight_map=json.loads(index.read_text())["weight_map"] | {LAST: shard})
    assert_refused(folder, index.name, "outside its folder", repr(shard))


@pytest.mark.parametrize("weight_map", [None, {}, [], ["x"], "model.safetensors"], ids=repr)
def test_an_index_without_a_weight_map_is_named(tmp_path: Path, weight_map: Any) -> None:
    folder = small_checkpoint(tmp_path / "model", shards=3)
    edit_json(folder / INDEXES["safetensors"], weight_map=weight_map)
    assert_refused(folder, INDEXES["safetensors"], "weight_map")


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", [FIRST, LAST, NORM, "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"])
def test_a_weight_that_is_nowhere_is_named(tmp_path: Path, name: str, shards: int) -> None:
    folder = small_checkpoint(tmp_path / "model", shards=shards)
    for path in folder.glob("*.safetensors"):
        save_file({key: tensor.clone() for key, tensor in load_file(path).items() if key != name}, path)
    for index in folder.glob("*.index.json"):
        weight_map = json.loads(index.read_text())["weight_map"]
        del weight_map[name]
        edit_json(index, weight_map=weight_map)
    assert_refused(folder, "lacks", name)


@pytest.mark.parametrize(
    "name",
    [
        "gpt_neox.layers.0.attention.query_key_value.lora_A.weight",
        "gpt_neox.layers.2.input_layernorm.weight",
        "gpt_neox.layers.00.input_layernorm.weight",
        "score.weight",
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tensor_that_no_gpt_neox_has_is_named(tmp_path: Path, form: Form, name: str) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form)
    edit_weights(folder, put(name, torch.ones(64)), form)
    assert_refused(folder, name)


@pytest.mark.parametrize(
    ("name", "shape", "found", "meant"),
    [
        (FIRST, (329, 64), "329 x 64", "330 x 64"),
        (LAST, (0, 64), "0 x 64", "330 x 64"),
        (NORM, (63,), "63", "64"),
        (NORM, (64, 1), "64 x 1", "64"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", (64, 128), "64 x 128", "128 x 64"),
        ("gpt_neox.layers.1.attention.query_key_value.weight", (3, 64, 64), "3 x 64 x 64", "192 x 64"),
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(
    tmp_path: Path, form: Form, name: str, shape: tuple[int, ...], found: str, meant: str
) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form)
    edit_weights(folder, put(name, torch.ones(shape, dtype=torch.float16)), form)
    assert_refused(folder, name, f"shape {found}, but", f"means {meant}.")


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("name", [FIRST, LAST, NORM])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_nan_and_infinite_weights_are_named(tmp_path: Path, form: Form, dtype: Any, name: str, value: float) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form, dtype=dtype)

    def spoil(state: State) -> None:
        state[name][-1:].view(-1)[-1] = value
        assert state[name].dtype == DTYPES[dtype]

    edit_weights(folder, spoil, form)
    assert_refused(folder, name, "NaN or infinite", quants=("F32", "F16", "Q8_0"))


def a_weight_of(value: float, name: str = LAST) -> Callable[[State], None]:
    def edit(state: State) -> None:
        state[name].view(-1)[7] = value

    return edit


def values_in(path: Path, name: str) -> Any:
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)


@pytest.mark.parametrize("value", [1e6, -1e6, 65520.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_weight_too_large_for_fp16_is_refused_for_f16_by_name_and_kept_by_f32_and_q8_0(
    tmp_path: Path, dtype: Any, value: float
) -> None:
    folder = small_checkpoint(tmp_path / "model", dtype=dtype)
    edit_weights(folder, a_weight_of(value))
    stored = float(load_file(folder / "model.safetensors")[LAST].view(-1)[7])
    assert_refused(folder, LAST, "too large for F16", quants=("F16",))
    assert_refused(folder, LAST, "too large for F16", quants=("Q8_0", "F16"))
    f32, q8_0 = converted(folder, tmp_path / "output", "F32", "Q8_0")
    assert values_in(f32, "output.weight")[7] == stored
    assert values_in(q8_0, "output.weight")[7] == pytest.approx(stored, rel=1e-3)


def test_a_float32_weight_is_rounded_to_fp16_as_numpy_does_up_to_the_largest_that_has_one(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", dtype="float32")
    edit_weights(folder, a_weight_of(65519.996))
    (f16,) = converted(folder, tmp_path / "output", "F16")
    assert values_in(f16, "output.weight")[7] == np.float16(65519.996) == 65504


def test_a_large_bias_is_no_reason_to_refuse_f16_because_vectors_stay_float32(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", dtype="float32")
    edit_weights(folder, a_weight_of(1e6, NORM))
    (f16,) = converted(folder, tmp_path / "output", "F16")
    assert values_in(f16, "output_norm.bias")[7] == 1e6


@pytest.mark.parametrize("quant", sorted(set(MIXTURES) - {"F32"}))
def test_no_quantization_turns_a_huge_weight_into_infinity(tmp_path: Path, quant: str) -> None:
    """A block's scale is fp16, so every type has an end."""
    folder = small_checkpoint(tmp_path / "model", hidden=256, intermediate=256, layers=1, dtype="float32")
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    edit_weights(folder, a_weight_of(1e9, name))
    assert_refused(folder, name, "too large", quants=(quant,))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.bool, torch.int64, torch.float64, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_of_other_types_are_named(tmp_path: Path, form: Form, dtype: torch.dtype) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form)
    edit_weights(folder, lambda state: put(LAST, state[LAST].to(dtype))(state), form)
    assert_refused(folder, LAST, "stored as", kind=UnsupportedModelError)


# --- a .bin that is something else ------------------------------------------------------------------------------------


class Malicious:
    """Calls `function` when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (lambda marker: Malicious(os.system, f"touch '{marker}'"), f"{os.name}.system"),
        (lambda marker: Malicious(exec, f"open({str(marker)!r}, 'w').close()"), "exec"),
        (lambda marker: Malicious(eval, f"open({str(marker)!r}, 'w').close()"), "eval"),
        (lambda marker: Malicious(os.mkdir, str(marker)), f"{os.name}.mkdir"),
    ],
    ids=["os.system", "exec", "eval", "os.mkdir"],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_bin_that_wants_to_run_code_is_refused_and_does_not(
    tmp_path: Path, shards: int, attack: Callable[[Path], Malicious], named: str
) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin", shards=shards)
    path = sorted(folder.glob("*.bin"))[-1]
    marker = tmp_path / "marker"
    torch.save(torch.load(path) | {"more": attack(marker)}, path)
    assert_refused(folder, path.name, "wants to run code", f"({named})")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the attack is none, so that the test says nothing"


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file that looks like a TorchScript archive")
def test_a_torchscript_archive_is_refused_without_torchs_advice_to_run_it(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin")
    with zipfile.ZipFile(folder / "pytorch_model.bin", "a") as archive:
        archive.writestr("pytorch_model/constants.pkl", b"\x80\x02).")
    error = refusal(folder, tmp_path / "output")
    assert "pytorch_model.bin" in error.message
    assert "TorchScript" in error.message
    assert "will likely succeed" not in str(error)


def test_a_bin_older_than_torch_1_6_is_refused_with_the_way_to_save_it_again(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin")
    path = folder / "pytorch_model.bin"
    state = torch.load(path)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    error = refusal(folder, tmp_path / "output")
    assert "pytorch_model.bin" in error.message
    assert "zip" in error.message
    assert "torch.save" in error.remedy
    torch.save(torch.load(path), path)
    converted(folder, tmp_path / "output", "Q8_0")


@pytest.mark.parametrize(
    "edit",
    [
        lambda state: list(state.values()),
        lambda state: {"model": state},
        lambda state: state | {"step": 1000},
        lambda state: state[LAST],
        lambda state: state | {LAST: state[LAST].to_sparse()},
        lambda state: state | {LAST: state[LAST].to("meta")},
    ],
    ids=["a list", "nested", "a number in it", "one tensor", "sparse", "without data"],
)
def test_a_bin_without_a_state_dict_is_refused(tmp_path: Path, edit: Callable[[State], Any]) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin")
    edit_weights(folder, edit, "bin")
    assert_refused(folder, "pytorch_model.bin", "no state dict")


def test_a_bin_whose_keys_are_no_names_is_refused(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin")
    edit_weights(folder, put(7, torch.ones(2, dtype=torch.float16)), "bin")
    assert_refused(folder, "tensors that a GPT-NeoX of 2 layers has not: 7")


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "other", "culprits"),
    [
        ("hidden_size", 128, [FIRST, "330 x 64", "330 x 128"]),
        ("intermediate_size", 256, ["mlp.dense_h_to_4h.weight", "128 x 64", "256 x 64"]),
        ("vocab_size", 400, [FIRST, "330 x 64", "400 x 64"]),
        ("vocab_size", 300, ["tokenizer.json", "329", "300"]),
        ("num_hidden_layers", 3, ["gpt_neox.layers.2.input_layernorm.weight"]),
        ("num_hidden_layers", 1, ["gpt_neox.layers.1."]),
    ],
)
def test_a_config_json_of_another_size_is_refused(checkpoint: Path, size: str, other: int, culprits: list[str]) -> None:
    edit_json(checkpoint / "config.json", **{size: other})
    assert_refused(checkpoint, *culprits)


@pytest.mark.parametrize("value", ["64", 64.0, -64, 0, None, True, 2**40], ids=repr)
@pytest.mark.parametrize(
    "size",
    [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ],
)
def test_a_size_that_is_no_size_is_named(checkpoint: Path, size: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{size: value})
    assert_refused(checkpoint, f"config.json: {size} ", repr(value))


@pytest.mark.parametrize("size", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_size_that_is_absent_is_named(checkpoint: Path, size: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    del config[size]
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert_refused(checkpoint, f"config.json: {size} ")


def test_heads_that_do_not_divide_the_hidden_size_are_named(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", num_attention_heads=3)
    assert_refused(checkpoint, "config.json", "3 attention heads", "64")


@pytest.mark.parametrize("value", ["0.25", None, NAN, INFINITY, -0.25, 0, [0.25], True], ids=repr)
@pytest.mark.parametrize("key", ["rotary_pct", "rotary_emb_base", "layer_norm_eps"])
def test_a_number_that_is_none_is_named(checkpoint: Path, key: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{key: value})
    assert_refused(checkpoint, f"config.json: {key} ", repr(value))


@pytest.mark.parametrize("value", ["0.25", None, NAN, -0.25, 0], ids=repr)
@pytest.mark.parametrize("key", ["partial_rotary_factor", "rope_theta"])
def test_a_number_that_is_none_is_named_in_the_new_form_too(tmp_path: Path, key: str, value: Any) -> None:
    folder = small_checkpoint(tmp_path / "model", config_form="new")
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    edit_json(folder / "config.json", rope_parameters=rope | {key: value})
    assert_refused(folder, f"config.json: {key} ", repr(value))


@pytest.mark.parametrize(
    ("fraction", "dimensions"), [(3 / 32, 3), (1 / 32, 1), (1 / 64, 0), (33 / 32, 33), (34 / 32, 34)]
)
def test_a_rotary_fraction_of_no_even_number_of_dimensions_is_refused(
    checkpoint: Path, fraction: float, dimensions: int
) -> None:
    edit_json(checkpoint / "config.json", rotary_pct=fraction)
    assert_refused(checkpoint, str(fraction), f"{dimensions} of 32", kind=UnsupportedModelError)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope", "llama3", 7, ["linear"]], ids=repr)
@pytest.mark.parametrize("form", ["old", "new"])
def test_rope_scaling_that_is_not_linear_is_refused(tmp_path: Path, form: Any, kind: Any) -> None:
    folder = small_checkpoint(tmp_path / "model", config_form=form)
    if form == "old":
        edit_json(folder / "config.json", rope_scaling={"type": kind, "factor": 4.0})
    else:
        rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
        edit_json(folder / "config.json", rope_parameters=rope | {"rope_type": kind, "factor": 4.0})
    assert_refused(folder, "rope scaling", repr(kind), kind=UnsupportedModelError)


@pytest.mark.parametrize("form", ["old", "new"])
def test_linear_rope_scaling_is_accepted(tmp_path: Path, form: Any) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    folder = small_checkpoint(tmp_path / "model", config_form=form, rope_scaling=scaling)
    (path,) = converted(folder, tmp_path / "output", "Q8_0")
    fields = gguf.GGUFReader(path).fields
    assert fields["gptneox.rope.scaling.type"].contents() == "linear"
    assert fields["gptneox.rope.scaling.factor"].contents() == 4.0


@pytest.mark.parametrize("factor", [{}, {"factor": None}, {"factor": "4"}, {"factor": 0}, {"factor": -4.0}], ids=str)
def test_linear_rope_scaling_without_a_positive_factor_is_refused(checkpoint: Path, factor: dict[str, Any]) -> None:
    edit_json(checkpoint / "config.json", rope_scaling={"type": "linear"} | factor)
    assert_refused(checkpoint, "config.json: factor ")


@pytest.mark.parametrize("value", [[], [4.0], "linear", 4.0, False], ids=repr)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_rope_settings_that_are_no_object_are_named(checkpoint: Path, key: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{key: value})
    assert_refused(checkpoint, f"config.json: {key} ", repr(value))


@pytest.mark.parametrize("activation", ["relu", "silu", "quick_gelu", "", None, ["gelu"]], ids=repr)
def test_an_activation_that_is_not_gelu_is_named(checkpoint: Path, activation: Any) -> None:
    edit_json(checkpoint / "config.json", hidden_act=activation)
    assert_refused(checkpoint, "hidden_act", str(activation), kind=UnsupportedModelError)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "LlamaForCausalLM"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": "LlamaForCausalLM"}, "LlamaForCausalLM"),
        ({"architectures": ["GPTNeoXForSequenceClassification"]}, "GPTNeoXForSequenceClassification"),
        ({"architectures": None, "model_type": "llama"}, "llama"),
        ({"model_type": "gpt_neox_japanese"}, "gpt_neox_japanese"),
        ({"model_type": None}, "None"),
        ({"architectures": [7]}, "7"),
    ],
    ids=str,
)
def test_another_architecture_is_named(checkpoint: Path, changes: dict[str, Any], named: str) -> None:
    edit_json(checkpoint / "config.json", **changes)
    assert_refused(checkpoint, f"is a {named}, not a GPTNeoXForCausalLM", kind=UnsupportedModelError)


@pytest.mark.parametrize("value", ["false", 0, None], ids=repr)
@pytest.mark.parametrize("key", ["use_parallel_residual", "tie_word_embeddings"])
def test_a_switch_that_is_neither_on_nor_off_is_named(checkpoint: Path, key: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{key: value})
    assert_refused(checkpoint, f"config.json: {key} ", repr(value))


@pytest.mark.parametrize("value", [-1, 330, 2**33, "0", None, [], [400], 0.0, True], ids=repr)
@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
def test_a_token_id_that_the_vocabulary_lacks_is_named(checkpoint: Path, key: str, value: Any) -> None:
    edit_json(checkpoint / "config.json", **{key: value})
    assert_refused(checkpoint, f"config.json: {key} ", "330", repr(value))


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no valid JSON"),
        (b'{"hidden_size": 64,', "no valid JSON"),
        (b"\0" * 4096, "no valid JSON"),
        (b'{"model_type": "\xff"}', "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"<!DOCTYPE html>", "no valid JSON"),
        (b"[]", "should hold a JSON object"),
        (b"null", "should hold a JSON object"),
        (b'"config"', "should hold a JSON object"),
    ],
    ids=lambda value: repr(value[:20]),
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", *INDEXES.values()])
def test_damaged_json_is_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin" if ".bin" in name else "safetensors", shards=3)
    assert (folder / name).is_file()
    (folder / name).write_bytes(content)
    assert_refused(folder, str(folder / name), reason)


def test_a_folder_in_the_place_of_a_file_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.json").mkdir()
    assert_refused(checkpoint, str(checkpoint / "tokenizer.json"), "cannot be read")


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


def edit_tokenizer(folder: Path, edit: Callable[[Any], Any]) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    edit(tokenizer)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def test_a_missing_tokenizer_json_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert_refused(checkpoint, "tokenizer.json is missing", str(checkpoint))


@pytest.mark.parametrize(
    ("edit", "culprit"),
    [
        (put("model", {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0]], "byte_fallback": False}), "Unigram"),
        (put("model", {"type": "WordPiece", "vocab": {"a": 0}}), "WordPiece"),
        (put("model", {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "WordLevel"),
        (put("model", "byte_fallback", True), "byte_fallback"),
        (put("model", "ignore_merges", True), "ignore_merges"),
        (put("model", "dropout", 0.1), "dropout"),
        (put("model", "continuing_subword_prefix", "##"), "continuing_subword_prefix"),
        (put("model", "end_of_word_suffix", "</w>"), "end_of_word_suffix"),
        (put("pre_tokenizer", {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}), "Metaspace"),
        (put("pre_tokenizer", {"type": "Whitespace"}), "Whitespace"),
        (put("pre_tokenizer", None), "nothing"),
        (
            put("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Punctuation"}, BYTE_LEVEL]}),
            "Punctuation and ByteLevel",
        ),
        (put("pre_tokenizer", BYTE_LEVEL | {"add_prefix_space": True}), "adds a space in front"),
        (put("pre_tokenizer", BYTE_LEVEL | {"use_regex": False}), "does not split as GPT-2 does"),
        (put("normalizer", {"type": "Lowercase"}), "Lowercase"),
        (put("normalizer", {"type": "NFKC"}), "NFKC"),
        (
            put("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
            "NFC and Lowercase",
        ),
        (put("added_tokens", 0, "rstrip", True), "<|endoftext|>"),
        (put("added_tokens", -1, "single_word", True), "'  '"),
        (
            put(
                "post_processor",
                {
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                    ],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                    "special_tokens": {
                        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
                    },
                },
            ),
            "1 special tokens",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_tokenizer_of_another_kind_is_named(checkpoint: Path, edit: Callable[[Any], Any], culprit: str) -> None:
    edit_tokenizer(checkpoint, edit)
    assert_refused(checkpoint, culprit, kind=UnsupportedModelError)


@pytest.mark.parametrize(
    "edit",
    [
        lambda tokenizer: tokenizer.pop("model"),
        put("model", None),
        put("model", []),
        put("model", ["BPE"]),
        put("model", "BPE"),
        lambda tokenizer: tokenizer["model"].pop("vocab"),
        put("model", "vocab", {}),
        put("model", "vocab", None),
        put("model", "vocab", ["a", "b"]),
        put("model", "vocab", "extra", "5"),
        put("model", "vocab", "extra", -1),
        put("model", "vocab", "extra", 5.5),
        put("model", "vocab", "extra", 5),
        lambda tokenizer: tokenizer["model"].pop("merges"),
        put("model", "merges", None),
        put("model", "merges", [1]),
        put("model", "merges", ["ab"]),
        put("model", "merges", [["a", "b", "c"]]),
        put("model", "merges", ["unknown pieces"]),
        put("added_tokens", {"a": 1}),
        put("added_tokens", [1]),
        put("added_tokens", [{"content": "a"}]),
        put("added_tokens", [{"id": 0, "special": True}]),
        put("added_tokens", [{"id": 0, "content": "a"}]),
        put("added_tokens", 0, "id", "0"),
        put("added_tokens", 0, "id", -1),
        put("added_tokens", 0, "content", 1),
        put("normalizer", "NFC"),
        put("normalizer", {}),
        put("normalizer", {"type": "Sequence"}),
        put("normalizer", {"type": "Sequence", "normalizers": [1]}),
        put("pre_tokenizer", "ByteLevel"),
        put("pre_tokenizer", []),
    ],
)
def test_a_damaged_tokenizer_json_is_named(checkpoint: Path, edit: Callable[[Any], Any]) -> None:
    edit_tokenizer(checkpoint, edit)
    assert_refused(checkpoint, "tokenizer.json")


@pytest.mark.parametrize(
    "edit",
    [put("model", "vocab", "extra", 330), put("added_tokens", -1, "id", 1000)],
    ids=["in the vocab", "among the added tokens"],
)
def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(
    checkpoint: Path, edit: Callable[[Any], Any]
) -> None:
    edit_tokenizer(checkpoint, edit)
    assert_refused(checkpoint, "tokenizer.json has ids up to", "330 rows")


# --- sources and options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["/nowhere/model", "nowhere/at/all", "./nowhere", "nowhere", "~/nowhere-at-all"])
def test_a_path_that_does_not_exist_and_is_no_hub_id_is_named(tmp_path: Path, source: str) -> None:
    error = refusal(source, tmp_path / "output")
    assert source.removeprefix("./").removeprefix("~/") in error.message
    assert "There is no" in error.message
    assert "owner/name" in error.remedy


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", str(tmp_path / "empty"), "no config.json")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_folder_without_weights_is_named(tmp_path: Path, form: Form) -> None:
    folder = small_checkpoint(tmp_path / "model", form=form)
    (folder / FILES[form]).unlink()
    assert_refused(folder, str(folder), "no weights")


def test_a_file_is_no_source(checkpoint: Path, tmp_path: Path) -> None:
    error = refusal(checkpoint / "model.safetensors", tmp_path / "output")
    assert f"{checkpoint / 'model.safetensors'} is a file" in error.message
    assert error.remedy


def test_a_gguf_is_no_source_and_the_remedy_says_how_to_run_it(tmp_path: Path) -> None:
    error = refusal(demo_model(), tmp_path / "output")
    assert f"{demo_model()} is a GGUF file already" in error.message
    assert "--model" in error.remedy


def test_a_revision_is_refused_for_a_folder(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="--revision"):
        converted(checkpoint, tmp_path / "output", "Q8_0", revision="main")
    assert files_in(tmp_path / "output") == []


@pytest.mark.parametrize("quants", [("Q9_X",), ("Q8_0", "Q9_X"), ("Q4_K_M Q9_X",)])
def test_an_unknown_quantization_is_named_with_those_there_are(checkpoint: Path, quants: tuple[str, ...]) -> None:
    error = refusal(checkpoint, checkpoint.parent / "output", *quants)
    assert "Q9_X" in error.message
    assert all(name in error.remedy for name in MIXTURES)


def test_no_quantization_at_all_is_refused_with_those_there_are(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="No quantization") as caught:
        converted(checkpoint, tmp_path / "output")
    assert all(name in caught.value.remedy for name in MIXTURES)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("below", ["", "output", "a/b"])
def test_an_output_folder_that_cannot_be_one_is_named(checkpoint: Path, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    error = refusal(checkpoint, tmp_path / "file" / below)
    assert type(error) is OutputError
    assert str(tmp_path / "file" / below) in error.message
    assert "--output" in error.remedy
    assert (tmp_path / "file").read_text() == "mine"


def test_a_refused_conversion_leaves_the_earlier_result_as_it_was(checkpoint: Path, tmp_path: Path) -> None:
    (earlier,) = converted(checkpoint, tmp_path / "output", "Q8_0")
    content = earlier.read_bytes()
    edit_weights(checkpoint, a_weight_of(NAN))
    with pytest.raises(CheckpointError, match=LAST):
        converted(checkpoint, tmp_path / "output", "Q8_0", force=True)
    assert earlier.read_bytes() == content
    assert files_in(tmp_path / "output") == ["model-Q8_0.gguf", "model-Q8_0.json"]


# --- the command line -------------------------------------------------------------------------------------------------


def remove_a_shard(folder: Path) -> None:
    sorted(folder.glob("*.bin"))[1].unlink()


def put_code_into_a_shard(folder: Path) -> None:
    path = sorted(folder.glob("*.bin"))[0]
    torch.save(torch.load(path) | {"more": Malicious(os.mkdir, str(folder / "marker"))}, path)


@pytest.mark.parametrize(
    ("damage", "quant", "said"),
    [
        (remove_a_shard, "Q8_0", "is missing in"),
        (put_code_into_a_shard, "Q8_0", "wants to run code when it is read"),
        (lambda _: None, "Q8_0,Q9_X", "There is no quantization called 'Q9_X'"),
        (lambda _: None, "", "No quantization was given"),
    ],
    ids=["missing shard", "code in a shard", "unknown quantization", "no quantization"],
)
def test_the_command_ends_with_1_and_says_why_on_stderr_alone(
    tmp_path: Path, damage: Callable[[Path], None], quant: str, said: str
) -> None:
    folder = small_checkpoint(tmp_path / "model", form="bin", shards=3)
    damage(folder)
    done = run_convert(folder, "--quant", quant, "--output", tmp_path / "output")
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.partition("convert: ")[2].splitlines()
    assert said in last[0]
    assert len(last) == 2, "the cause and the remedy"
    assert "Traceback" not in done.stderr
    assert not (folder / "marker").exists()
    assert not (tmp_path / "output").exists() or files_in(tmp_path / "output") == []
