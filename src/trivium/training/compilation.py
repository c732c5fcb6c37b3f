"""`torch.compile`, block by block.

Compiling each block of a stack, rather than the model, makes one compilation serve all blocks, leaves the model's
methods and parameter names alone, and works with recomputed activations.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from trivium.errors import UserError


def compile_blocks(model: nn.Module, device: torch.device, backend: str = "inductor") -> int:
    """Compile, in place, the members of every outermost `nn.ModuleList`; how many there are.

    UserError when there are none, or when a CPU's code cannot be built for want of a C++ compiler.
    """
    needs_compiler = backend == "inductor" and device.type == "cpu" and "CXX" not in os.environ
    if needs_compiler and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise UserError("training.compile: needs a C++ compiler (g++ or clang++); install one, or set it to false")
    blocks = _blocks(model)
    if not blocks:
        raise UserError(f"training.compile: {type(model).__name__} has no stack of blocks; set it to false")
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)


def _blocks(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, nn.ModuleList):
        return list(module)
    return [block for child in module.children() for block in _blocks(child)]
