"""The structures of `cpp/program.h`, field by field; what each means is said there.

Whoever fills in an address keeps the tensor it points into. Invariant its test checks: every structure is as large as
its twin in C++ (`native.py` refuses a library for which that is not so).
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int64, c_void_p

MATRIX_KINDS = {"fp32": 0, "bf16": 1, "fp16": 2, "int8": 3, "int4": 4, "int4_asymmetric": 5, "int8_dynamic": 6}
NORM_KINDS = {"none": 0, "rms": 1, "layer": 2}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}


class Matrix(ctypes.Structure):
    """A linear layer."""

    _fields_ = (
        *((name, c_int64) for name in ("kind", "outputs", "inputs", "group")),
        *((name, c_void_p) for name in ("packed", "scales", "offsets", "bias")),
    )


class Norm(ctypes.Structure):
    """A norm; all zeros: none."""

    _fields_ = (("kind", c_int64), ("eps", c_double), ("weight", c_void_p), ("bias", c_void_p))


class Layer(ctypes.Structure):
    """A block."""

    _fields_ = (
        *((f"{name}_norm", Norm) for name in ("attention", "attention_output", "query", "key", "mlp", "mlp_output")),
        *((name, Matrix) for name in ("query", "key", "value", "output", "gate", "up", "down")),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("window", c_int64),
    )


class Program(ctypes.Structure):
    """A decoder."""

    _fields_ = (
        *((name, c_int64) for name in ("layers", "width", "heads", "kv_heads", "head_width", "mlp_width", "rotated")),
        *((name, c_int64) for name in ("activation", "parallel", "post_norm")),
        *((name, c_double) for name in ("attention_scale", "attention_softcap", "logit_scale")),
        ("slopes", c_void_p),
        ("norm", Norm),
        ("head", Matrix),
        ("layer", POINTER(Layer)),
    )


class KeysValues(ctypes.Structure):
    """Where the keys and values of all slots lie."""

    _fields_ = (
        ("kind", c_int64),
        ("capacity", c_int64),
        *((name, POINTER(c_void_p)) for name in ("keys", "values", "key_scales", "value_scales")),
    )


class Sequence(ctypes.Structure):
    """New rows of one slot."""

    _fields_ = tuple((name, c_int64) for name in ("slot", "start", "count", "row"))


class Step(ctypes.Structure):
    """One call."""

    _fields_ = (
        ("program", POINTER(Program)),
        ("slots", POINTER(KeysValues)),
        ("sequences", POINTER(Sequence)),
        ("num_sequences", c_int64),
        ("rows", c_int64),
        ("embedded", c_void_p),
        ("chosen", POINTER(c_int64)),
        ("num_chosen", c_int64),
        ("logits", c_void_p),
        ("seconds", c_void_p),
    )


# In the order in which the library numbers them.
ALL = (Matrix, Norm, Layer, Program, KeysValues, Sequence, Step)
