"""The compiled library: found beside this file, opened once, and never built at run time.

It is optional. A machine without a compiler installs Trivium without it, and whoever asks `available()` first computes
through torch instead. One library holds the same functions for several levels of vector instructions; the best that the
processor has is taken, unless the environment variable TRIVIUM_KERNELS names another (`vnni`, `avx512`, `avx2`,
`plain`) or `off`.

It shares torch's threads: torch brings the OpenMP runtime and is therefore imported first.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
from ctypes import POINTER, c_char_p, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch

from trivium.kernels import structures

# Products with fewer weights than this are done by one thread: a second one would take longer to wake.
WEIGHTS_PER_THREAD = 1 << 15


@dataclass(frozen=True)
class Native:
    """The library at one level."""

    library: ctypes.CDLL
    level: int
    name: str
    """Its instructions: `vnni` (AVX-512 and products of bytes), `avx512`, `avx2` or `plain`."""

    @property
    def multiplies_bytes(self) -> bool:
        """Whether int8_dynamic is fast here for any number of rows."""
        return self.name == "vnni"

    def threads(self, weights: int) -> int:
        """How many threads of those torch may use are worth waking for that many weights."""
        return max(1, min(torch.get_num_threads(), weights // WEIGHTS_PER_THREAD))


def available() -> bool:
    """Whether the kernels were built when Trivium was installed (and are not switched off)."""
    return native() is not None


def native() -> Native | None:
    """The library at the level the environment asks for, by default the best; None where there is none.

    A level that this processor does not have is as good as none.
    """
    asked = os.environ.get("TRIVIUM_KERNELS", "")
    levels = _levels()
    return levels.get(asked) if asked else next(iter(levels.values()), None)


@functools.cache
def _levels() -> dict[str, Native]:
    """Every level this processor has, best first."""
    library = _opened()
    if library is None:
        return {}
    found: dict[str, Native] = {}
    while (name := library.trivium_level(len(found))) is not None:
        found[name.decode()] = Native(library, len(found), name.decode())
    return found


def _opened() -> ctypes.CDLL | None:
    """The library with its functions declared; None where it is missing or of another version of these sources."""
    paths = (Path(__file__).with_name("_native" + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.trivium_level.argtypes, library.trivium_level.restype = [c_int64], c_char_p
        library.trivium_size.argtypes, library.trivium_size.restype = [c_int64], c_int64
        pointer = POINTER(structures.Matrix)
        library.trivium_linear.argtypes = [c_int64, pointer, c_void_p, c_int64, c_int64, c_void_p, c_int64]
        library.trivium_linear.restype = None
        step = POINTER(structures.Step)
        library.trivium_scratch.argtypes, library.trivium_scratch.restype = [c_int64, step, c_int64], c_int64
        library.trivium_step.argtypes, library.trivium_step.restype = [c_int64, step, c_void_p, c_int64], None
    except (OSError, AttributeError):
        return None
    sizes = [library.trivium_size(which) for which in range(len(structures.ALL))]
    return library if sizes == [ctypes.sizeof(each) for each in structures.ALL] else None
