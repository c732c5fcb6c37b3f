"""A model written for other software, and the proof that it is still the same model.

With `verify`, what was written is read back and compared with the source (`verification.py`); the figures go into the
README beside the weights, so that whoever gets the model gets them too.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from trivium.checkpoints.bundle import Bundle, load
from trivium.checkpoints.directory import replaceable, save_model_directory
from trivium.checkpoints.gguf_writing import GgufDtype, replaceable_file, save_gguf
from trivium.checkpoints.model_card import use_of
from trivium.checkpoints.resolve import GGUF
from trivium.checkpoints.verification import TOLERANCES, Verification, compare
from trivium.config import build_settings
from trivium.errors import UserError
from trivium.files import write_atomically
from trivium.generation.settings import GenerationSettings
from trivium.models.config import ModelConfig
from trivium.progress import SILENT, Progress
from trivium.quantization.linear import PackedMatrix
from trivium.quantization.replacing import scheme_of
from trivium.runtime import Precision

USUAL_DTYPE: dict[str, GgufDtype] = {"hf": "fp32", "gguf": "fp16"}
README = "README.md"
WEIGHTS_ALONE = (
    "the weights of the model it was made from, not with its int8_dynamic products: those round activations too, while "
    "the model runs, which other software does not"
)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    """The directory or the file."""
    readme: Path
    """What tells people about it."""
    dtype: GgufDtype
    """How its weights are stored."""
    num_bytes: int
    """Size of all that was written."""
    verification: Verification | None = None
    """How near it is to its source, where that was asked for."""

    @property
    def passed(self) -> bool | None:
        """Whether it is as near to its source as its dtype allows; None: not asked."""
        return None if self.verification is None else self.verification.passes(self.dtype)


def export(
    bundle: Bundle,
    to: str,
    out: str | Path,
    *,
    dtype: str | None = None,
    verify: bool = False,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> Exported:
    """Write a model as a Hugging Face directory (`hf`) or a GGUF file (`gguf`), its name ending in .gguf.

    `dtype` is fp32, fp16 or bf16, for GGUF also q8_0 or q4_0 (None: fp32 for directories, fp16 for GGUF). `device` is
    where what was written is read back to. Raises UserError for a model that the format cannot hold.
    """
    out = Path(out)
    stored = stored_dtype(to, out, dtype)
    if to == "gguf":
        save_gguf(
            out, bundle.model, bundle.config, bundle.tokenizer, dtype=stored, eos_ids=bundle.eos_ids, progress=progress
        )
        readme = out.with_name(f"{out.stem}.{README}")
        write_atomically(readme, _gguf_card(out, bundle.config, stored))
    else:
        progress.note(f"writing {out}")
        save_model_directory(
            out,
            bundle.model,
            bundle.config,
            bundle.tokenizer,
            dtype=cast(Precision, stored),
            generation=build_settings(GenerationSettings, bundle.generation, "generation"),
            eos_ids=bundle.eos_ids,
            family=bundle.family or None,
        )
        readme = out / README
    verification = None
    if verify:
        source = _without_rounded_activations(bundle)
        of = "the model it was made from" if source is bundle else WEIGHTS_ALONE
        progress.note(f"comparing {out} with {of}")
        verification = compare(source, load(out, device=device), progress=progress)
        write_atomically(readme, readme.read_text(encoding="utf-8") + _verified(verification, stored, of))
    return Exported(out, readme, stored, _size(out), verification)


def _without_rounded_activations(bundle: Bundle) -> Bundle:
    """The source with its own weights only: what is written of an int8_dynamic model rounds no activations.

    Else rounding that no file can hold would count as an error of the file, which fp32 explains nothing of.
    """
    scheme = scheme_of(bundle.model)
    if scheme is None or scheme.format != "int8_dynamic":
        return bundle
    model = deepcopy(bundle.model)
    for module in model.modules():
        if isinstance(module, PackedMatrix):
            module.kind = "int8"
    return replace(bundle, model=model)


def stored_dtype(to: str, out: Path, dtype: str | None) -> GgufDtype:
    """The dtype to store weights in; UserError for a format, a name or a dtype that do not go together.

    Also for a name that something else has: all that can be told before a model is there.
    """
    if to not in USUAL_DTYPE:
        raise UserError(f"there is no format {to}: use {' or '.join(USUAL_DTYPE)}")
    known = get_args(Precision if to == "hf" else GgufDtype)
    stored = USUAL_DTYPE[to] if dtype is None else dtype
    if stored not in known:
        raise UserError(f"{to} cannot be written in {stored}: use {', '.join(known)}")
    if (to == "gguf") != (out.suffix == GGUF):
        wanted = f"a file whose name ends in {GGUF}" if to == "gguf" else "a directory"
        raise UserError(f"{out}: {to} needs {wanted}")
    if to == "gguf":
        replaceable_file(out)
    else:
        replaceable(out)
    return cast(GgufDtype, stored)


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _gguf_card(path: Path, config: ModelConfig, dtype: GgufDtype) -> str:
    """What people need to know of a GGUF file."""
    use = use_of(config)
    shell = [command.replace(" . ", f" {path.name} ") for command in use.shell]
    others = ""
    if config.kind == "decoder":
        shell.append(f'llama-cli -m {path.name} -p "Once upon a time"')
        others = (
            f"\nWith Ollama: a file `Modelfile` with the line `FROM ./{path.name}`, then "
            f"`ollama create {path.stem.lower()}`.\n"
        )
    commands = "\n".join(f"    {command}" for command in shell)
    return f"""# {path.stem}

A {use.what} as one GGUF file, weights stored as {dtype}, made with Trivium. The file holds its tokenizer, its chat
template (if it has one) and the ids of the tokens that end a text.

{commands}
{others}"""


def _verified(verification: Verification, dtype: GgufDtype, of: str) -> str:
    """The section of a README about the comparison."""
    bound = f"the bound of {TOLERANCES[dtype]:g} for weights stored as {dtype}"
    verdict = f"The mean divergence is within {bound}." if verification.passes(dtype) else f"IT IS BEYOND {bound}."
    return f"""
## Compared with its source

Read back and compared in fp32 with {of}. {verdict}

{verification.to_markdown()}
"""
