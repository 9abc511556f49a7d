"""Importance matrices: how much each column of a weight matters, in llama.cpp's GGUF form.

`llama-imatrix` runs texts through a model and adds up, for each weight and each of its columns, the squares of what
the column is multiplied with. Divided by the number of tokens that is what the quantizer weighs its errors by. The
form is that of `tools/imatrix/imatrix.cpp`: general.type "imatrix", and for each weight the tensors `<weight>.in_sum2`
and `<weight>.counts`.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFType, GGUFWriter, Keys, ReaderTensor
from numpy.typing import NDArray

from convert.errors import ImatrixError, OutputError
from weblab_local.files import sha256, written_whole

SUMS_SUFFIX = ".in_sum2"
COUNTS_SUFFIX = ".counts"

CALIBRATION_KEY = "weblab.calibration.key"
CALIBRATION_TEXTS = "weblab.calibration.texts_sha256"
CALIBRATION_TOKENS = "weblab.calibration.tokens"
CALIBRATION_SHARE = "weblab.calibration.share."

_FROM_LLAMA_IMATRIX = "Give --imatrix the GGUF that llama-imatrix wrote."
_MAKE_AGAIN = "Copy or download it again, or make it again with llama-imatrix."


@dataclass(frozen=True, eq=False)
class Activations:
    """What went into one weight: `sums` of its squares over `n_tokens` tokens, float32 (n_columns,)."""

    sums: NDArray[np.float32]
    n_tokens: int


@dataclass(frozen=True)
class Calibration:
    """What `convert.calibrate` says of a matrix that it made.

    `key` is the SHA-256 of what the sums depend on, checkpoint and token ids; `texts_sha256` that of the texts;
    `shares` are those of the languages among the tokens.
    """

    key: str
    texts_sha256: str
    n_tokens: int
    shares: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class ImportanceMatrix:
    """Activations by the weights' GGUF names.

    `datasets` names the texts they are of, `chunk_count` and `chunk_size` (tokens) how these were cut;
    `calibration` is None where somebody else made it. Raises ImatrixError for sums that cannot be: negative, not
    finite, or not one per column.
    """

    entries: Mapping[str, Activations]
    datasets: Sequence[str]
    chunk_count: int
    chunk_size: int
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not self.entries:
            raise ImatrixError("The importance matrix holds no data.", _MAKE_AGAIN)
        for name, activations in self.entries.items():
            fault = _fault(activations)
            if fault:
                raise ImatrixError(f"The importance matrix {fault} for {name}.", _MAKE_AGAIN)

    @property
    def n_tokens(self) -> int:
        """Tokens that it was made of: those that the weight with the most of them has seen."""
        return max(activations.n_tokens for activations in self.entries.values())

    def weights(self, name: str) -> NDArray[np.float32] | None:
        """What llama-quantize hands to the quantizer for the weight `name`: float32 (n_columns,), None without data.

        The mean squares, in float32; ones for a weight that no token has reached.
        """
        activations = self.entries.get(name)
        if activations is None:
            return None
        if activations.n_tokens == 0:
            return np.ones_like(activations.sums)
        return activations.sums / np.float32(activations.n_tokens)


def _fault(activations: Activations) -> str:
    sums = activations.sums
    if sums.ndim != 1 or sums.dtype != np.float32 or not sums.size:
        return "has no row of float32 sums"
    if not np.isfinite(sums).all():
        return "has sums that are NaN or infinite"
    if (sums < 0).any():
        return "has negative sums of squares"
    return "has a negative number of tokens" if activations.n_tokens < 0 else ""


@dataclass(frozen=True, eq=False)
class ImatrixFile:
    """An importance matrix and the file it was read from: its name, without folders, and its SHA-256 in hex."""

    name: str
    sha256: str
    matrix: ImportanceMatrix

    @property
    def datasets(self) -> list[str]:
        """The matrix's datasets, without the folders they had on the machine where it was made."""
        return [PureWindowsPath(dataset).name for dataset in self.matrix.datasets]

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest says of it."""
        tokens = self.matrix.n_tokens
        return {"file": self.name, "sha256": self.sha256, "datasets": self.datasets, "tokens": tokens}

    def importance(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
        """The weights for each matrix among `shapes` (rows, columns) that has data: {name: float32 (n_columns,)}.

        Raises ImatrixError where the file has data for a weight that is not there, or for another number of columns.
        """
        found = {}
        for name in self.matrix.entries:
            shape = shapes.get(name, ())
            weights = self.matrix.weights(name)
            if weights is None or len(shape) != 2:
                raise self._of_another_model(f"it has data for {name}, which this model has not")
            if weights.size != shape[1]:
                raise self._of_another_model(
                    f"it has {weights.size} columns for {name}, which has {shape[1]} in this model"
                )
            found[name] = weights
        return found

    def _of_another_model(self, how: str) -> ImatrixError:
        return ImatrixError(
            f"The importance matrix {self.name} is of another model: {how}.",
            "Give the matrix that was made of this model, or leave --imatrix out.",
        )


def open_imatrix(path: Path) -> ImatrixFile:
    """The importance matrix in the file at `path`, checked. Raises ImatrixError."""
    matrix = read_imatrix(path)
    return ImatrixFile(path.name, sha256(path), matrix)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """The importance matrix in the GGUF at `path`, whoever wrote it.

    Raises ImatrixError for a file that is damaged, cut short, a model, or in the .dat form that came before GGUF.
    """
    try:
        _require_gguf(path)
        return _matrix(GGUFReader(path))
    except OSError as error:
        raise ImatrixError(f"{path}: It cannot be read: {error.strerror or error}.", _FROM_LLAMA_IMATRIX) from None
    except ImatrixError as error:
        raise ImatrixError(f"{path}: {error.message}", error.remedy) from None
    except Exception as error:  # gguf's reader has no errors of its own
        raise ImatrixError(f"{path}: The file is damaged or cut short: {error}.", _MAKE_AGAIN) from None


def _require_gguf(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(512)
    if start[:4] == b"GGUF":
        return
    if _is_dat(start):
        raise ImatrixError(
            "The importance matrix is in llama.cpp's older .dat format.",
            f"Convert it: llama-imatrix --in-file {path.name} -o {path.stem}.gguf",
        )
    raise ImatrixError("This is no GGUF, which importance matrices are.", _FROM_LLAMA_IMATRIX)


def _is_dat(start: bytes) -> bool:
    """Whether a file begins as the older format does: the number of entries, the length of a name, a weight's name."""
    if len(start) < 8:
        return False
    n_entries, length = struct.unpack_from("<ii", start)
    return n_entries > 0 and 0 < length <= len(start) - 8 and start[8 : 8 + length].endswith(b".weight")


def _matrix(reader: GGUFReader) -> ImportanceMatrix:
    kind = _value(reader, Keys.General.TYPE)
    if kind != GGUFType.IMATRIX:
        is_model = kind == GGUFType.MODEL or (kind is None and _value(reader, Keys.General.ARCHITECTURE))
        what = "a model" if is_model else f"a GGUF of the type {kind!r}" if kind else "a GGUF that does not say of what"
        raise ImatrixError(f"This is {what}, not an importance matrix.", _FROM_LLAMA_IMATRIX)
    datasets = _value(reader, Keys.IMatrix.DATASETS)
    counts = [_value(reader, key) for key in (Keys.IMatrix.CHUNK_COUNT, Keys.IMatrix.CHUNK_SIZE)]
    if not isinstance(datasets, list) or not all(isinstance(item, str) for item in datasets):
        raise ImatrixError("The importance matrix does not say of which datasets it was made.", _MAKE_AGAIN)
    if not all(isinstance(count, int) for count in counts):
        raise ImatrixError("The importance matrix does not say of how many tokens it was made.", _MAKE_AGAIN)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    names = [name.removesuffix(SUMS_SUFFIX) for name in tensors if name.endswith(SUMS_SUFFIX)]
    counted = [name.removesuffix(COUNTS_SUFFIX) for name in tensors if name.endswith(COUNTS_SUFFIX)]
    halves = set(names) ^ set(counted)
    if halves:
        name = min(halves)
        missing = name + (COUNTS_SUFFIX if name in names else SUMS_SUFFIX)
        raise ImatrixError(f"The importance matrix is incomplete: there is no {missing}.", _MAKE_AGAIN)
    entries = {name: _activations(tensors[name + SUMS_SUFFIX], tensors[name + COUNTS_SUFFIX]) for name in names}
    return ImportanceMatrix(entries, datasets, counts[0], counts[1], _calibration(reader))


def _calibration(reader: GGUFReader) -> Calibration | None:
    key, texts = _value(reader, CALIBRATION_KEY), _value(reader, CALIBRATION_TEXTS)
    n_tokens = _value(reader, CALIBRATION_TOKENS)
    if not (isinstance(key, str) and isinstance(texts, str) and isinstance(n_tokens, int)):
        return None
    shares = {
        name.removeprefix(CALIBRATION_SHARE): float(_value(reader, name))
        for name in reader.fields
        if name.startswith(CALIBRATION_SHARE)
    }
    return Calibration(key, texts, n_tokens, shares)


def add_calibration(writer: GGUFWriter, calibration: Calibration) -> None:
    """Texts, token count and language shares as metadata of a GGUF. The key is left to the matrix's own file."""
    writer.add_string(CALIBRATION_TEXTS, calibration.texts_sha256)
    writer.add_uint32(CALIBRATION_TOKENS, calibration.n_tokens)
    for language, share in sorted(calibration.shares.items()):
        writer.add_float64(CALIBRATION_SHARE + language, share)


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _activations(sums: ReaderTensor, counts: ReaderTensor) -> Activations:
    count = _row(counts)
    if count.size != 1 or count[0] < 0 or not float(count[0]).is_integer():
        raise ImatrixError(f"The importance matrix has no number of tokens in {counts.name}.", _MAKE_AGAIN)
    return Activations(_row(sums), int(count[0]))


def _row(tensor: ReaderTensor) -> NDArray[np.float32]:
    """The values of a tensor with one row, of our own. A mixture of experts would have a row for each of them."""
    data = tensor.data
    if tensor.tensor_type != GGMLQuantizationType.F32 or data.size != data.shape[-1]:
        shape = " x ".join(map(str, data.shape))
        raise ImatrixError(
            f"The importance matrix has {shape} values of type {tensor.tensor_type.name} in {tensor.name}, not one "
            "row of F32.",
            "It is of another model, such as a mixture of experts, or damaged.",
        )
    return np.array(data, dtype=np.float32).reshape(-1)


class _ImatrixWriter(GGUFWriter):
    def add_architecture(self) -> None:
        """Nothing: an importance matrix has no architecture."""


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write `matrix` to `path` as llama-imatrix does; under the final name the file is whole or absent.

    Raises ImatrixError where it names no dataset, without which llama-quantize refuses it, and OutputError.
    """
    if not matrix.datasets:
        raise ImatrixError("The importance matrix does not say of which datasets it was made.")
    try:
        with written_whole(path) as partial:
            _write(partial, matrix)
    except OSError as error:
        raise OutputError(
            f"The importance matrix cannot be written to {path}: {error}.", "Free some space, or choose another folder."
        ) from None


def _write(path: Path, matrix: ImportanceMatrix) -> None:
    writer = _ImatrixWriter(path, "")
    writer.add_type(GGUFType.IMATRIX)
    writer.add_array(Keys.IMatrix.DATASETS, list(matrix.datasets))
    writer.add_uint32(Keys.IMatrix.CHUNK_COUNT, matrix.chunk_count)
    writer.add_uint32(Keys.IMatrix.CHUNK_SIZE, matrix.chunk_size)
    if matrix.calibration is not None:
        writer.add_string(CALIBRATION_KEY, matrix.calibration.key)
        add_calibration(writer, matrix.calibration)
    for name, activations in sorted(matrix.entries.items()):
        writer.add_tensor(name + SUMS_SUFFIX, activations.sums)
        writer.add_tensor(name + COUNTS_SUFFIX, np.array([activations.n_tokens], np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
