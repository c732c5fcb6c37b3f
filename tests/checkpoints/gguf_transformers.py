"""A GGUF file as `transformers` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def read_by_transformers(path: Path) -> Any:
    """Its model in fp32, in evaluation mode: the config it makes of the metadata, the tensors it makes of the file.

    `from_pretrained(folder, gguf_file=...)` does the same, but wants a package (accelerate) for it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert set(missing) <= tied and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.eval()
