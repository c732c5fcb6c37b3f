"""A model with all that is needed to use it: `load("runs/quickstart/pretrain/model").generate("def main():").text`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.checkpoints.adapter_reading import AdapterFiles, base_path, head_of, is_adapter, read_adapter_files
from trivium.checkpoints.adapters import put_on, refuse_adapters, save_adapter_directory
from trivium.checkpoints.config_files import read_config, read_eos_ids, read_generation
from trivium.checkpoints.directory import load_model_directory, save_model_directory
from trivium.checkpoints.resolve import resolve_model
from trivium.config import build_settings
from trivium.errors import UserError
from trivium.families import family_for
from trivium.generation.purposes import refuse_unless, refuse_unless_causal
from trivium.models.build import Model
from trivium.models.config import Head, ModelConfig
from trivium.models.decoder import Decoder
from trivium.models.encoder import Encoder
from trivium.peft.apply import active_adapter, merge_adapter, use_adapter
from trivium.progress import SILENT, Progress
from trivium.quantization.quantize import quantize_model, refuse_quantized
from trivium.quantization.schemes import Scheme, scheme_for
from trivium.runtime import Precision

if TYPE_CHECKING:
    import torch

    from trivium.generation.classify import Classification
    from trivium.generation.fill_mask import Candidate
    from trivium.generation.generate import Generation
    from trivium.generation.settings import GenerationSettings
    from trivium.metrics.perplexity import Perplexity
    from trivium.tokenizer.bpe import Tokenizer

# Our names of the precisions, and torch's.
PRECISIONS: dict[str, Precision] = {
    "fp32": "fp32",
    "float32": "fp32",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
}


@dataclass(frozen=True)
class TokenLogprob:
    """How well one token of a text was predicted from those before it."""

    token: int
    """Its id."""
    text: str
    """Its text; of a character cut in two, U+FFFD."""
    logprob: float
    """Natural logarithm of its probability (nats, at most 0)."""


@dataclass(frozen=True)
class Bundle:
    """Model, tokenizer and config that belong together."""

    model: Model
    """The model; `bundle.model(ids_BT)` gives what its head does: of a language model logits (B, T, V)."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    config: ModelConfig
    """Its shape."""
    eos_ids: tuple[int, ...] = ()
    """The ids that end a text; empty: the tokenizer's end-of-text token."""
    family: str = ""
    """The published family it was read as and is saved as; empty: whichever fits."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """How an encoder-decoder generates unless told otherwise: fields of `GenerationSettings`."""
    notes: tuple[str, ...] = ()
    """What of its files was left out, and what of the model is not from its files, one line each."""
    source: str = ""
    """What it was opened as; of an adapter, what its base is called."""

    def save(
        self,
        directory: str | Path,
        *,
        dtype: Precision | None = None,
        notes: str = "",
        extra_files: Mapping[str, str | bytes] | None = None,
    ) -> None:
        """Write a model directory, a quantized model as it is; see `directory.save_model_directory`.

        With a `dtype` its weights are stored in it, packed ones unpacked. `notes` (markdown) go into its README,
        `extra_files` beside it. UserError for a model with an adapter, which is merged first or saved by itself.
        """
        refuse_adapters(self.model, "saved as a model")
        from trivium.generation.settings import GenerationSettings

        save_model_directory(
            directory,
            self.model,
            self.config,
            self.tokenizer,
            dtype=dtype,
            generation=build_settings(GenerationSettings, self.generation, "generation"),
            eos_ids=self.eos_ids,
            notes=notes,
            family=self.family or None,
            extra_files=extra_files,
        )

    def add_adapter(self, path: str | Path, name: str = "default") -> None:
        """Put the adapter of a directory on the model and make it the active one; the base may have others already.

        UserError for an adapter that does not fit.
        """
        files = read_adapter_files(resolve_model(path))
        head, labels = head_of(files, self.config)
        if head is not None:
            with_labels = f" of the classes {', '.join(labels)}" if labels else ""
            raise UserError(f"{path} is for a model with a {head} head{with_labels}: open it by itself (trivium.load)")
        put_on(self.model, files, name, self.family)

    @contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Inside, the adapter of this name is the active one, None: the base alone; afterwards all is as before."""
        before = active_adapter(self.model)
        use_adapter(self.model, name)
        try:
            yield
        finally:
            use_adapter(self.model, before)

    def save_adapter(self, path: str | Path, name: str = "default") -> None:
        """Write one adapter, as `peft` reads it; see `checkpoints/adapters.py`."""
        base = self.source or "unknown"
        save_adapter_directory(path, self.model, name, base=base, tokenizer=self.tokenizer, family=self.family)

    def merge_adapter(self, name: str = "default") -> None:
        """Work an adapter into the weights of the model, which has it no longer then; see `peft/apply.py`."""
        merge_adapter(self.model, name)

    def generate(
        self,
        prompt: str | Sequence[int],
        settings: GenerationSettings | None = None,
        *,
        stream: Callable[[str], None] | None = None,
        **changes: Any,
    ) -> Generation:
        """Continue one prompt; of an encoder-decoder, write the target of a source.

        Settings come as an object or by name: `generate("a", temperature=0.8, top_p=0.9)`; what they leave open is as
        in `generation`. `stream` is called with each new piece of text. Raises UserError for settings that do not
        exist, and for a model that generates no text.
        """
        refuse_unless(self.config, "generate", ["decoder", "encoder-decoder"])
        assert not isinstance(self.model, Encoder)  # by its kind
        from trivium.generation.generate import generate
        from trivium.generation.settings import GenerationSettings

        asked = {**({} if settings is None else settings.model_dump(exclude_unset=True)), **changes}
        # Whoever asks for a draw asks for no search.
        usual = {
            key: value for key, value in self.generation.items() if key != "num_beams" or not asked.get("temperature")
        }
        chosen = build_settings(GenerationSettings, {**usual, **asked}, "generate")
        (generation,) = generate(
            self.model,
            self.tokenizer,
            [prompt],
            chosen,
            stream=None if stream is None else lambda _, piece: stream(piece),
            eos_ids=self.eos_ids or None,
        )
        return generation

    def seq2seq(self, text: str, settings: GenerationSettings | None = None, **changes: Any) -> Generation:
        """What an encoder-decoder makes of `text`: `generate` for these models alone."""
        refuse_unless(self.config, "seq2seq", ["encoder-decoder"])
        return self.generate(text, settings, **changes)

    def fill_mask(self, text: str, top_k: int = 5) -> list[Candidate]:
        """The likeliest tokens for the mask token in `text`, best first; of masked language models."""
        refuse_unless(self.config, "fill_mask", ["encoder"])
        assert isinstance(self.model, Encoder)  # by its kind
        from trivium.generation.fill_mask import fill_mask

        return fill_mask(self.model, self.tokenizer, text, top_k)

    def classify(self, text: str, pair: str | None = None) -> Classification:
        """The class of a text, or of a pair of texts, and the probability of each class; of a scalar head its score."""
        from trivium.generation.classify import classify

        (result,) = classify(self.model, self.tokenizer, [text], None if pair is None else [pair])
        return result

    def embed(self, texts: str | Sequence[str]) -> torch.Tensor:
        """One vector of length 1 for each text, (N, D): the mean of its hidden states."""
        from trivium.generation.embed import embed

        return embed(self.model, self.tokenizer, [texts] if isinstance(texts, str) else list(texts))

    def logprobs(self, text: str) -> list[TokenLogprob]:
        """The log-probability of each token of `text` given those before it; see `generation/scoring.py`."""
        model = self._causal("log-probability of a text")
        from trivium.generation.prompts import document_start
        from trivium.generation.scoring import token_logprobs

        ids = self.tokenizer.encode(text)
        logprobs = token_logprobs(model, ids, prefix_id=document_start(self.tokenizer))
        return [
            TokenLogprob(token, self.tokenizer.decode([token]), logprob)
            for token, logprob in zip(ids, logprobs.tolist(), strict=True)
        ]

    def perplexity(self, text: str) -> Perplexity:
        """Perplexity and bits per byte of `text`; UserError when it is empty."""
        model = self._causal("perplexity")
        from trivium.generation.scoring import score_text

        return score_text(model, self.tokenizer, text).perplexity()

    def _causal(self, what: str) -> Decoder:
        """The model, if it predicts each token from those before it; UserError that says why it has no `what`."""
        refuse_unless_causal(self.config, what)
        assert isinstance(self.model, Decoder)  # by its kind
        return self.model


def load(
    name: str | Path,
    *,
    dtype: Precision | torch.dtype | str = "fp32",
    device: torch.device | str = "cpu",
    quantize: str | Scheme | None = None,
    head: Head | None = None,
    labels: Iterable[str] = (),
) -> Bundle:
    """Open a model: a model directory, a run directory, an adapter, a GGUF file, a built-in name or a hub id.

    An adapter is opened with its base, and is the active one of the bundle, named `default`.

    `dtype` is what its weights are converted to: fp32, bf16 or fp16 (or torch's names of them). `head` puts another
    head on it (`classification` for the classes `labels`, `scalar`, ...), which is to be trained. `quantize` packs the
    weights while they are read ("int8", "int4", ... or a `Scheme`), so that the dense model is never in memory; `dtype`
    is then what the model computes in. Raises UserError that names what is wrong.
    """
    precision = PRECISIONS.get(str(dtype).removeprefix("torch."))
    if precision is None:
        raise UserError(f"dtype is {dtype!r}: use fp32, bf16 or fp16")
    scheme = None if quantize is None else scheme_for(quantize)
    path = resolve_model(name)
    if is_adapter(path):
        if head is not None:
            raise UserError(f"{path} is an adapter, for the head it was trained with: leave head out")
        return _load_adapter(read_adapter_files(path), precision, device, scheme)
    if scheme is not None and not scheme.packs:
        bundle = load(name, dtype=scheme.format, device=device, head=head, labels=labels)
        return replace(bundle, model=quantize_model(bundle.model, scheme))
    if path.suffix == ".gguf":
        return replace(_load_gguf(path, precision, device, head, scheme), source=str(name))
    notes: list[str] = []
    model, tokenizer, config = load_model_directory(
        path, dtype=precision, device=device, head=head, labels=labels, scheme=scheme, note=notes.append
    )
    family, _ = read_config(path)
    generation = read_generation(path, notes.append) if config.kind == "encoder-decoder" else {}
    return Bundle(model, tokenizer, config, read_eos_ids(path), family.model_type, generation, tuple(notes), str(name))


def quantize(
    bundle: Bundle,
    scheme: str | Scheme,
    *,
    calibration: Sequence[str] | None = None,
    progress: Progress = SILENT,
) -> Bundle:
    """The same model in fewer bits: "int8", "int4", ... or a `Scheme`; the given one stays as it is.

    `calibration` is text for the methods that look at some, gptq and awq (None: the standard library). Raises UserError
    for a model that is quantized already, and for weights that the format cannot hold.
    """
    scheme = scheme_for(scheme)
    refuse_adapters(bundle.model, f"quantized (load its base so: load(..., quantize={scheme.format!r}))")
    refuse_quantized(bundle.model, f"quantized again (to {scheme.format})")
    if scheme.packs and scheme.method == "nearest":
        from trivium.checkpoints.quantized import packed_copy

        return replace(bundle, model=packed_copy(bundle.model, bundle.config, scheme, progress))
    batches = None
    if scheme.method != "nearest":
        from trivium.checkpoints.calibration_text import calibration_batches

        batches = calibration_batches(bundle.config, bundle.tokenizer, calibration)
    model = quantize_model(deepcopy(bundle.model), scheme, calibration=batches, progress=progress)
    return replace(bundle, model=model)


def _load_adapter(files: AdapterFiles, dtype: Precision, device: torch.device | str, scheme: Scheme | None) -> Bundle:
    """The base of an adapter, with the adapter on it, and with the tokenizer that is beside the adapter."""
    path = base_path(files)
    described = None if path.suffix == ".gguf" else read_config(path)[1]
    head, labels = (None, ()) if described is None else head_of(files, described)
    bundle = load(files.base, dtype=dtype, device=device, quantize=scheme, head=head, labels=labels)
    if described is None and head_of(files, bundle.config)[0] is not None:
        raise UserError(f"{files.path}: its base is a GGUF file, which cannot be given another head")
    put_on(bundle.model, files, "default", bundle.family)
    if not (files.path / "tokenizer.json").is_file():
        return bundle
    from trivium.tokenizer.bpe import Tokenizer

    tokenizer = Tokenizer.load(files.path)
    if tokenizer.vocab_size > bundle.config.vocab_size:
        raise UserError(
            f"{files.path}: its tokenizer has {tokenizer.vocab_size} entries, its base {bundle.config.vocab_size}"
        )
    return replace(bundle, tokenizer=tokenizer)


def _load_gguf(
    path: Path, dtype: Precision, device: torch.device | str, head: Head | None, scheme: Scheme | None
) -> Bundle:
    """A GGUF file, which holds a decoder with its lm head."""
    from trivium.checkpoints.gguf_reading import load_gguf

    if head is not None:
        raise UserError(f"{path}: a new head needs a model directory; save the model as one first (bundle.save)")
    model, tokenizer, config, eos_ids = load_gguf(path, dtype=dtype, device=device, scheme=scheme)
    try:
        family = family_for(config).model_type
    except UserError:
        family = ""
    return Bundle(model, tokenizer, config, tuple(eos_ids), family)
