"""Read GGUF files that lie, with hardly any memory to spare: `read_hostile_gguf.py FOLDER NUM_MUTANTS`.

Prints one JSON object: what each lie was answered, how many mutants were refused and accepted, the slowest answer, and
whether the limit is one (a control). Anything but a UserError ends the program with a traceback.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import torch

from checkpoints.gguf_samples import LIES, mutated, write_whole
from trivium.checkpoints.gguf_file import read_header, read_tensor
from trivium.errors import UserError

SPARE_BYTES = 96 << 20
folder, num_mutants = Path(sys.argv[1]), int(sys.argv[2])
file = folder / "hostile.gguf"


def answer(data: bytes) -> str:
    """The refusal, or nothing for a file that is taken, whose every number is then read."""
    file.write_bytes(data)
    try:
        found = read_header(file)
        for name in found.tensors:
            read_tensor(found, name, torch.float32)
    except UserError as error:
        assert str(file) in str(error) and "\n" not in str(error)
        return str(error)
    reference = gguf.GGUFReader(file)
    assert {tensor.name for tensor in reference.tensors} == set(found.tensors)
    return ""


write_whole(file)
whole = file.read_bytes()
assert answer(whole) == ""
header_bytes = read_header(file).tensors["F32"].start
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, used + SPARE_BYTES))
try:
    np.zeros(2 * SPARE_BYTES, np.uint8)
    limited = False
except MemoryError:
    limited = True
answers = {name: answer(data) for name, (data, _) in LIES.items()}
slowest, refused = 0.0, 0
for seed in range(num_mutants):
    started = time.perf_counter()
    refused += bool(answer(mutated(whole, header_bytes, seed)))
    slowest = max(slowest, time.perf_counter() - started)
sys.stdout.write(json.dumps({"answers": answers, "refused": refused, "slowest": slowest, "limited": limited}))
