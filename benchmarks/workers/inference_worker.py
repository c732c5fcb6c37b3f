"""One contender of `benchmarks/inference.py`: a process that opens a model, and continues prompts when it is told to.

Its first answer comes with its first token: from the start of the process until then is what a user waits. Then it
reads commands from stdin (`run WORKLOAD NEW_TOKENS`, `peak`, `quit`) and answers each with one JSON object.

Every contender is one function from prompts (ids) to greedy continuations (ids) of a fixed length, written as that
library's users write it, at its best; nothing else is imported, so that memory and start are its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workers.process import peak_resident_bytes, stdout_for_answers, tell

Prompts = Sequence[Sequence[int]]
Generate = Callable[[Prompts, int], list[list[int]]]
"""(prompts, new tokens) -> the new ids of each."""

# llama.cpp's room for a text is a multiple of this.
CONTEXT_STEP = 256
# Most tokens it is given at once, and that it computes at once.
LLAMA_BATCH, LLAMA_MICRO_BATCH = 4096, 512
KEPT: list[object] = []
"""What C code calls until the process ends."""


@dataclass(frozen=True)
class Job:
    """What a worker is to be."""

    contender: str
    engine: str
    """trivium, transformers, llama.cpp, ctranslate2, or torch (which is only imported)."""
    path: str
    """Its model."""
    prompts: str
    """The file of prompts."""
    dtype: str = "fp32"
    """What it computes in (trivium, transformers)."""
    threads: int = 0
    """0: as many as the library chooses, of llama.cpp and CTranslate2 as many as there are cores."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of trivium: how to generate."""

    @property
    def stated_threads(self) -> int:
        """For libraries that must be told."""
        return self.threads or len(os.sched_getaffinity(0))


def trivium(job: Job) -> Generate:
    """Ours, as `trivium generate` runs it."""
    from trivium.cli import SPIN_COUNT

    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # as the command does
    from trivium.checkpoints.bundle import load
    from trivium.generation.generate import generate
    from trivium.generation.settings import GenerationSettings
    from trivium.runtime import choose_runtime, prepare_process

    prepare_process(choose_runtime("cpu", threads=job.threads))
    bundle = load(job.path, dtype=job.dtype)

    def run(prompts: Prompts, new_tokens: int) -> list[list[int]]:
        settings = GenerationSettings(max_new_tokens=new_tokens, ignore_eos=True, **job.settings)
        return [result.tokens for result in generate(bundle.model, bundle.tokenizer, prompts, settings)]

    return run


def transformers(job: Job) -> Generate:
    """`transformers`: `generate`, greedily, with its cache."""
    import torch
    from transformers import AutoModelForCausalLM

    if job.threads:
        torch.set_num_threads(job.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[job.dtype]
    model = AutoModelForCausalLM.from_pretrained(job.path, dtype=dtype, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None  # nothing ends a text before its length
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def run(prompts: Prompts, new_tokens: int) -> list[list[int]]:
        ids = torch.tensor([list(prompt) for prompt in prompts])
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, use_cache=True
        )
        rows: list[list[int]] = written[:, ids.shape[1] :].tolist()
        return rows

    return run


def ctranslate2(job: Job) -> Generate:
    """CTranslate2: `Generator.generate_batch`, beam 1; it is given tokens by their names."""
    from ctranslate2 import Generator

    vocabulary = json.loads((Path(job.path) / "vocabulary.json").read_text())
    # Computes in the type its converted weights are stored in.
    generator = Generator(job.path, device="cpu", inter_threads=1, intra_threads=job.stated_threads)

    def run(prompts: Prompts, new_tokens: int) -> list[list[int]]:
        results = generator.generate_batch(
            [[vocabulary[token] for token in prompt] for prompt in prompts],
            beam_size=1,
            min_length=new_tokens,
            max_length=new_tokens,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]

    return run


def llama_cpp(job: Job) -> Generate:
    """llama.cpp through its C functions: all texts in one batch, the largest logit by numpy."""
    import llama_cpp as cpp
    import numpy as np

    @cpp.llama_log_callback
    def silent(level: int, text: bytes, data: object) -> None:
        return

    KEPT.append(silent)
    cpp.llama_log_set(silent, None)
    cpp.llama_backend_init()
    model = cpp.llama_model_load_from_file(job.path.encode(), cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot read {job.path}")
    vocab_size = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
    batch = cpp.llama_batch_init(LLAMA_BATCH, 0, 1)
    contexts: dict[tuple[int, int], Any] = {}

    def context(rows: int, length: int) -> Any:
        """One for texts of that many rows and that length, which is kept."""
        length = -(-length // CONTEXT_STEP) * CONTEXT_STEP
        if (rows, length) not in contexts:
            params = cpp.llama_context_default_params()
            params.n_ctx, params.n_seq_max = rows * length, rows
            params.n_batch, params.n_ubatch = LLAMA_BATCH, LLAMA_MICRO_BATCH
            params.n_threads = params.n_threads_batch = job.stated_threads
            contexts[rows, length] = cpp.llama_init_from_model(model, params)
        return contexts[rows, length]

    def read(ctx: Any, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Read (token, position, row, whether its logits are wanted)."""
        for i, (token, position, row, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        batch.n_tokens = len(entries)
        if status := cpp.llama_decode(ctx, batch):
            raise SystemExit(f"llama_decode gave {status}")

    def likeliest(ctx: Any, place: int) -> int:
        return int(np.ctypeslib.as_array(cpp.llama_get_logits_ith(ctx, place), (vocab_size,)).argmax())

    def run(prompts: Prompts, new_tokens: int) -> list[list[int]]:
        length = len(prompts[0])
        ctx = context(len(prompts), length + new_tokens)
        cpp.llama_memory_clear(cpp.llama_get_memory(ctx), False)
        entries = [
            (token, position, row, position == length - 1)
            for row, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        read(ctx, entries)
        rows = [[likeliest(ctx, length * (row + 1) - 1)] for row in range(len(prompts))]
        for position in range(length, length + new_tokens - 1):
            read(ctx, [(tokens[-1], position, row, True) for row, tokens in enumerate(rows)])
            for row, tokens in enumerate(rows):
                tokens.append(likeliest(ctx, row))
        return rows

    return run


ENGINES: dict[str, Callable[[Job], Generate]] = {
    "trivium": trivium,
    "transformers": transformers,
    "ctranslate2": ctranslate2,
    "llama.cpp": llama_cpp,
}


def serve(job: Job) -> None:
    """Open the contender, then obey stdin."""
    answers = stdout_for_answers()
    if job.engine == "torch":
        import torch  # noqa: F401 (how long this alone takes)

        tell(answers)
        return
    prompts: dict[str, list[list[int]]] = json.loads(Path(job.prompts).read_text())
    generate = ENGINES[job.engine](job)
    (tokens,) = generate(prompts["first"], 1)
    tell(answers, tokens=tokens)
    for line in sys.stdin:
        command, *words = line.split()
        if command in ("peak", "quit"):
            tell(answers, peak_bytes=peak_resident_bytes())
            if command == "quit":
                break
            continue
        began = time.perf_counter()
        rows = generate(prompts[words[0]], int(words[1]))
        seconds = time.perf_counter() - began
        if any(len(row) != int(words[1]) for row in rows):
            raise SystemExit(f"{job.contender} wrote {[len(row) for row in rows]} tokens, not {words[1]} each")
        tell(answers, seconds=seconds, tokens=rows)
    answers.flush()
    os._exit(0)  # some of these libraries cannot end in good order; all has been said


def arguments(job: Job, python: str = sys.executable) -> list[str]:
    """The command that starts a worker."""
    return [python, "-m", "workers.inference_worker", json.dumps(asdict(job))]


if __name__ == "__main__":
    serve(Job(**json.loads(sys.argv[1])))
