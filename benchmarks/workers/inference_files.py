"""Makes what the contenders of `benchmarks/inference.py` read: one model in every format, and the prompts.

A process of its own, so that its memory and its threads are gone before anything is measured. Everything comes from one
model: Hugging Face directories, GGUF files and quantized directories through Trivium's own writers, CTranslate2's
directories through that library's converter of Hugging Face directories.
"""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workers.process import stdout_for_answers, tell

PROMPT_TOKENS = 32
PASSAGE_TOKENS = 48


@dataclass(frozen=True)
class Order:
    """What is to be made."""

    model: str
    folder: str
    formats: tuple[str, ...]
    """Names such as `hf-bf16`, `gguf-q8_0`, `trivium-int4`, `ctranslate2-int8`, `shipped`."""
    prefill_tokens: int
    rows: int
    """Prompts of the batch."""


def prompts(tokenizer: Any, order: Order) -> dict[str, list[list[int]]]:
    """The prompts of each workload, as ids: real text, the documentation and source of a standard module.

    `copy` is a passage, the passage again, and its beginning once more: text that goes on with what has been there.
    """
    text = (inspect.getdoc(textwrap) or "") + inspect.getsource(textwrap) + inspect.getsource(inspect)
    ids = tokenizer.encode(text[:200_000])
    starts = range(0, order.rows * 97, 97)
    passage = ids[400 : 400 + PASSAGE_TOKENS]
    return {
        "first": [ids[:PROMPT_TOKENS]],
        "decode1": [ids[:PROMPT_TOKENS]],
        "decode8": [ids[start : start + PROMPT_TOKENS] for start in starts],
        "prefill": [ids[: order.prefill_tokens]],
        "copy": [[*passage, *passage, *passage[:16]]],
    }


def make(order: Order) -> dict[str, Any]:
    """Write the prompts and all formats: {"files": {format: path}, "failed": {format: why}}."""
    from trivium.checkpoints.bundle import load
    from trivium.checkpoints.resolve import resolve_model
    from trivium.errors import UserError
    from trivium.progress import SILENT
    from trivium.runtime import choose_runtime, prepare_process

    prepare_process(choose_runtime("cpu"))
    folder = Path(order.folder)
    shipped = resolve_model(order.model)
    bundle = load(order.model)
    longest = max(order.prefill_tokens, 2 * PASSAGE_TOKENS + 16)
    if bundle.config.max_positions <= longest:
        raise SystemExit(f"the model has {bundle.config.max_positions} positions, too few for prompts of {longest}")
    (folder / "prompts.json").write_text(json.dumps(prompts(bundle.tokenizer, order)))
    files: dict[str, str] = {}
    failed: dict[str, str] = {}

    def directory(dtype: str) -> Path:
        from trivium.checkpoints.export import export

        target = folder / f"hf-{dtype}"
        return target if target.is_dir() else export(bundle, "hf", target, dtype=dtype, progress=SILENT).path

    def gguf(dtype: str) -> Path:
        from trivium.checkpoints.export import export

        return export(bundle, "gguf", folder / f"{dtype}.gguf", dtype=dtype, progress=SILENT).path

    def quantized(scheme: str) -> Path:
        from trivium.checkpoints.bundle import quantize

        quantize(load(order.model), scheme).save(folder / f"trivium-{scheme}")
        return folder / f"trivium-{scheme}"

    def converted(kind: str) -> Path:
        from ctranslate2.converters import TransformersConverter

        quantization = None if kind == "fp32" else kind
        TransformersConverter(str(directory("fp32"))).convert(
            str(folder / f"ctranslate2-{kind}"), quantization=quantization
        )
        return folder / f"ctranslate2-{kind}"

    makers: dict[str, Callable[[str], Path]] = {
        "hf": directory,
        "gguf": gguf,
        "trivium": quantized,
        "ctranslate2": converted,
    }
    for name in order.formats:
        maker, _, kind = name.partition("-")
        try:
            if name == "shipped":
                if not shipped.suffix:
                    raise UserError(f"{order.model} is no GGUF file")
                files[name] = str(shipped)
            else:
                files[name] = str(makers[maker](kind))
        except UserError as error:
            failed[name] = str(error)
    return {"files": files, "failed": failed}


def arguments(order: Order, python: str = sys.executable) -> list[str]:
    """The command that starts this process."""
    return [python, "-m", "workers.inference_files", json.dumps(asdict(order))]


if __name__ == "__main__":
    answers = stdout_for_answers()
    tell(answers, **make(Order(**json.loads(sys.argv[1]))))
