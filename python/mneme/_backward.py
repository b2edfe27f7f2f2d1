# SPDX-License-Identifier: Apache-2.0
"""The backward pass of attend."""
from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mneme import _tensors
from mneme._arrays import floats, new_floats
from mneme._errors import InvalidArgument, check
from mneme._native import lib, new_struct

if TYPE_CHECKING:
    from mneme._attend import ForwardCall

Gradient = Literal["query", "memory_query", "local_keys", "local_values", "memory_bias", "gate", "scale"]
_OF_TENSORS: tuple[Gradient, ...] = ("query", "memory_query", "local_keys", "local_values")
_OF_HEADS: tuple[Gradient, ...] = ("memory_bias", "gate", "scale")
GRADIENTS: tuple[Gradient, ...] = _OF_TENSORS + _OF_HEADS


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Gradients of a loss with respect to the inputs of one call of attend, each like its input.

    None where it was not wanted or the call had no such input. Rows of memories have no gradient.
    """

    query: Any
    """with the memory's part where the call had no memory_query"""
    memory_query: Any
    local_keys: Any
    local_values: Any
    memory_bias: npt.NDArray[np.float32] | None
    """[q_heads]; 0 where fusion is not joint"""
    gate: npt.NDArray[np.float32] | None
    """[q_heads], of the number before the sigmoid; 0 if not gated"""
    scale: npt.NDArray[np.float32] | None
    """[q_heads], of local and retrieved rows"""


def backward(call: ForwardCall, output_gradient: Any, log_sum_exp_gradient: Any,
             want: Collection[Gradient]) -> Gradients:
    """See Attention.backward."""
    args = new_struct("mneme_attend_backward_args")
    query = call.tensors["query"]
    tokens, heads = query.shape[:2]
    keep: list[Any] = [_tensors.tensor_of("output_gradient", output_gradient, bits=call.bits)]
    args.attend, args.output_gradient = call.args, keep[0].pointer
    if log_sum_exp_gradient is not None:
        keep.append(floats("log_sum_exp_gradient", log_sum_exp_gradient, (tokens, heads)))
        args.log_sum_exp_gradient = keep[-1]
    found: dict[str, Any] = dict.fromkeys(GRADIENTS)
    for name in want:
        if name not in GRADIENTS:
            raise InvalidArgument(f"want: expected names of {GRADIENTS}, got {name!r}")
        if name in _OF_HEADS:
            found[name], pointer = new_floats((heads,))
        elif name in call.tensors:
            found[name] = _tensors.new_like(name, call.tensors[name], call.tensors[name].shape)
            keep.append(_tensors.tensor_of(name, found[name], bits=call.bits, writable=True))
            pointer = keep[-1].pointer
        else:
            continue
        keep.append(pointer)
        setattr(args, f"{name}_gradient", pointer)
    check(lib.mneme_attend_backward(call.pointers, call.batch, args))
    return Gradients(**found)
