"""Sixteen float32 values side by side, as a type for functions that Numba compiles.

Written with `Lanes`, a kernel reads like scalar code and computes 16 blocks at once. Every operation is LLVM's own on
`<16 x float>`: rounded as IEEE 754 says, in the order written, never reordered, and fused only in `fused`. LLVM splits
it into whatever registers the processor has (one of AVX-512, two of AVX2, four of NEON). Numba's loop vectorizer would
have to be coaxed into the same code; here nothing depends on its mood.

The operators `+ - * / < >` and `&` are defined, and the functions below. Nothing here runs outside compiled code.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model
from numpy.typing import NDArray

COUNT = 16
"""Values in one `Lanes`."""


class Mask(Protocol):
    """16 truth values, for a type checker."""

    def __and__(self, other: "Mask", /) -> "Mask": ...


class Lanes(Protocol):
    """16 float32 values, for a type checker."""

    def __add__(self, other: "Lanes", /) -> "Lanes": ...
    def __sub__(self, other: "Lanes", /) -> "Lanes": ...
    def __mul__(self, other: "Lanes", /) -> "Lanes": ...
    def __truediv__(self, other: "Lanes", /) -> "Lanes": ...
    def __lt__(self, other: "Lanes", /) -> Mask: ...
    def __gt__(self, other: "Lanes", /) -> Mask: ...


_FLOATS = ir.VectorType(ir.FloatType(), COUNT)
_BITS = ir.VectorType(ir.IntType(1), COUNT)
_BYTES = ir.VectorType(ir.IntType(8), COUNT)

_Emit = Callable[[Any, Any, Sequence[Any], Sequence[Any]], Any]
"""Writes LLVM instructions: (target context, IR builder, argument types, argument values) -> the result's value."""


class _LanesType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{COUNT}")


class _MaskType(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"boolx{COUNT}")


_LANES = _LanesType()
_MASK = _MaskType()


def _register(numba_type: type, llvm_type: ir.Type) -> None:
    class Model(models.PrimitiveModel):
        def __init__(self, manager: Any, frontend_type: Any) -> None:
            super().__init__(manager, frontend_type, llvm_type)  # type: ignore[no-untyped-call]

    register_model(numba_type)(Model)


_register(_LanesType, _FLOATS)
_register(_MaskType, _BITS)


def _operation(n_arguments: int, result: types.Type, emit: _Emit) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> Any:
        return emit(context, builder, signature.args, values)

    definitions = {  # Numba counts their parameters
        1: lambda _, a: (result(a), generate),
        2: lambda _, a, b: (result(a, b), generate),
        3: lambda _, a, b, c: (result(a, b, c), generate),
    }
    return intrinsic(definitions[n_arguments])


def _operator(function: Callable[..., Any], operand: types.Type, result: types.Type, emit: _Emit) -> None:
    operation = _operation(2, result, emit)

    def implementation(a: Any, b: Any) -> Any:
        return (lambda a, b: operation(a, b)) if a == b == operand else None

    overload(function, strict=False)(implementation)  # strict: the annotations would have to be alike


_operator(operator.add, _LANES, _LANES, lambda _, builder, __, values: builder.fadd(*values))
_operator(operator.sub, _LANES, _LANES, lambda _, builder, __, values: builder.fsub(*values))
_operator(operator.mul, _LANES, _LANES, lambda _, builder, __, values: builder.fmul(*values))
_operator(operator.truediv, _LANES, _LANES, lambda _, builder, __, values: builder.fdiv(*values))
_operator(operator.lt, _LANES, _MASK, lambda _, builder, __, values: builder.fcmp_ordered("<", *values))
_operator(operator.gt, _LANES, _MASK, lambda _, builder, __, values: builder.fcmp_ordered(">", *values))
_operator(operator.and_, _MASK, _MASK, lambda _, builder, __, values: builder.and_(*values))


def _address(context: Any, builder: Any, array_type: Any, vector: ir.Type, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _load(context: Any, builder: Any, arguments: Sequence[Any], values: Sequence[Any]) -> Any:
    return builder.load(_address(context, builder, arguments[0], _FLOATS, *values), align=4)


def _store(context: Any, builder: Any, arguments: Sequence[Any], values: Sequence[Any]) -> Any:
    array, index, lanes = values
    builder.store(lanes, _address(context, builder, arguments[0], _FLOATS, array, index), align=4)
    return context.get_dummy_value()


def _store_bytes(context: Any, builder: Any, arguments: Sequence[Any], values: Sequence[Any]) -> Any:
    array, index, lanes = values
    address = _address(context, builder, arguments[0], _BYTES, array, index)
    builder.store(builder.fptoui(lanes, _BYTES), address, align=1)
    return context.get_dummy_value()


def _load_splat(context: Any, builder: Any, arguments: Sequence[Any], values: Sequence[Any]) -> Any:
    array, index = values
    data = context.make_array(arguments[0])(context, builder, array).data
    return _splat(context, builder, (), [builder.load(builder.gep(data, [index]))])


def _splat(_: Any, builder: Any, __: Sequence[Any], values: Sequence[Any]) -> Any:
    nothing = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(nothing, values[0], ir.IntType(32)(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), COUNT), [0] * COUNT))


def _all_true(_: Any, builder: Any, __: Sequence[Any], values: Sequence[Any]) -> Any:
    return builder.icmp_unsigned("==", builder.bitcast(values[0], ir.IntType(COUNT)), ir.IntType(COUNT)(-1))


def _llvm(name: str) -> _Emit:
    def emit(_: Any, builder: Any, __: Sequence[Any], values: Sequence[Any]) -> Any:
        signature = ir.FunctionType(_FLOATS, [_FLOATS] * len(values))
        function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.v{COUNT}f32")  # type: ignore[no-untyped-call]
        return builder.call(function, values)

    return emit


load: Callable[[NDArray[np.float32], int], Lanes] = _operation(2, _LANES, _load)
"""The 16 values of a contiguous float32 array that begin at an index, which is not checked."""

store: Callable[[NDArray[np.float32], int, Lanes], None] = _operation(3, types.void, _store)
"""Writes 16 values into a contiguous float32 array, from an index on, which is not checked."""

store_bytes: Callable[[NDArray[np.uint8], int, Lanes], None] = _operation(3, types.void, _store_bytes)
"""Writes 16 whole values of 0 to 255 as bytes into a contiguous uint8 array, from an index on, which is not checked."""

splat: Callable[[np.float32], Lanes] = _operation(1, _LANES, _splat)
"""One float32 in all lanes."""

load_splat: Callable[[NDArray[np.float32], int], Lanes] = _operation(2, _LANES, _load_splat)
"""One value of a contiguous float32 array in all lanes, by its index, which is not checked."""

where: Callable[[Mask, Lanes, Lanes], Lanes] = _operation(
    3, _LANES, lambda _, builder, __, values: builder.select(*values)
)
"""`np.where`."""

equal: Callable[[Lanes, Lanes], Mask] = _operation(
    2, _MASK, lambda _, builder, __, values: builder.fcmp_ordered("==", *values)
)
"""Where two are equal. (`==` is Python's own business for every type.)"""

all_true: Callable[[Mask], bool] = _operation(1, types.boolean, _all_true)
"""Whether a mask is set in all lanes."""

absolute: Callable[[Lanes], Lanes] = _operation(1, _LANES, _llvm("fabs"))
sqrt: Callable[[Lanes], Lanes] = _operation(1, _LANES, _llvm("sqrt"))
floor: Callable[[Lanes], Lanes] = _operation(1, _LANES, _llvm("floor"))
rint: Callable[[Lanes], Lanes] = _operation(1, _LANES, _llvm("rint"))
"""To the nearest whole number, halves to the even one."""

fused: Callable[[Lanes, Lanes, Lanes], Lanes] = _operation(3, _LANES, _llvm("fmuladd"))
"""a * b + c, rounded once where the processor has an instruction for that, and twice elsewhere."""
