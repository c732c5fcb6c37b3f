"""Small models of `transformers` as they are published, and what they make of some ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

SIZE = {"vocab_size": 99, "max_position_embeddings": 40}
SMALL = {**SIZE, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 36}
BART = {
    **SIZE,
    "d_model": 24,
    **{
        f"{stack}_{key}": n
        for stack in ("encoder", "decoder")
        for key, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 36))
    },
}
T5 = {"vocab_size": 99, "d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 2, "num_heads": 4}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", SMALL),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 99, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 40}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**SMALL, "hidden_size": 32}),
    "bert": ("BertForMaskedLM", SMALL),
    "bart": ("BartForConditionalGeneration", BART),
    "t5": ("T5ForConditionalGeneration", T5),
}


def published(name: str, *, class_name: str = "") -> Any:
    """A model with drawn weights; of the family's language models unless a class is named."""
    usual, sizes = THEIRS[name]
    cls = getattr(transformers, class_name or usual)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = cls(cls.config_class(**sizes))
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return model.eval()


def result(model: Any) -> Tensor:
    """What a model of ours or theirs makes of some ids."""
    ids = torch.arange(3, 33).view(2, 15)
    kind = getattr(model.config, "kind", None)
    with torch.no_grad():
        if kind is not None:
            found: Tensor = model(ids, ids) if kind == "encoder-decoder" else model(ids)
        else:
            more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
            found = model(input_ids=ids, **more)[0]
        return found


def hidden(model: Any) -> Tensor:
    """Last hidden states of one of our models."""
    ids = torch.arange(3, 33).view(2, 15)
    with torch.no_grad():
        if model.config.kind == "encoder-decoder":
            found: Tensor = model.hidden(ids, memory=model.memory(model.encode(ids)))[0]
        else:
            found = model.hidden(ids) if model.config.kind == "encoder" else model.hidden(ids)[0]
        return found


def stored_in(path: Path) -> dict[str, Tensor]:
    """All tensors of a directory, whatever files they are in."""
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}
