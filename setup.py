"""The one part of Trivium that is compiled: `src/trivium/kernels/cpp`, if there is a compiler that can.

Everything else is in pyproject.toml. The extension is optional: where it cannot be built, the installation goes on
without it, and Trivium computes through torch alone. It holds no Python code (it is opened with ctypes), so that no
Python headers are needed and torch is not needed to build it.
"""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src/trivium/kernels/cpp")
FLAGS = ["-O3", "-g0", "-std=c++17", "-fopenmp", "-ffp-contract=fast", "-fvisibility=hidden"]
# Notes on how vectors are passed between versions of GCC, and false alarms inside its own headers.
QUIET = ["-Wno-psabi", "-Wno-maybe-uninitialized"]

setup(
    ext_modules=[
        Extension(
            "trivium.kernels._native",
            sources=sorted(str(path) for path in NATIVE.glob("*.cpp")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            language="c++",
            extra_compile_args=[*FLAGS, *QUIET],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
    ]
)
