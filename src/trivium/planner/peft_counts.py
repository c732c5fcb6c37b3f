"""What each way of training a part of a model trains, and what it keeps for the backward pass, from the config alone.

Per block, with T positions, D width, F MLP width, r rank, m bottleneck, P virtual tokens, k key/value width:
  bias        every bias of the model (Ben Zaken et al., 2022, BitFit), those of norms and head among them
  norms       every weight and bias of the norms
  last_layers the parameters of the last blocks, and of the norm after them
  lora        r (in + out) for each target (Hu et al., 2022); rslora (Kalajdzievski, 2023) the same, scaled otherwise
  dora        and one magnitude for each output (Liu et al., 2024)
  houlsby     two adapters a block, 2 D m + m + D each (Houlsby et al., 2019)
  pfeiffer    one after the MLP (Pfeiffer et al., 2021); parallel: one beside it (He et al., 2022)
  ia3         a factor for each key, value and inner MLP element: 2 k + F (Liu et al., 2022)
  prompt      P D, once (Lester et al., 2021)
  prefix      P keys and P values for each attention, 2 P k (Li & Liang, 2021), without its re-parametrisation
  p_tuning    P D and a network D -> D -> D -> D that makes the prompt (Liu et al., 2021, with an MLP)

A frozen linear layer need not keep its input, since its weight wants no gradient; `unkept_bytes` is what that saves.
Left out: heads that are trained beside the method, and what LoRA's dropout keeps.

Invariants its test checks: every count by hand, and those of bias, norms and last_layers on built models; what autograd
keeps with frozen weights, to the byte.
"""

from __future__ import annotations

from trivium.errors import UserError
from trivium.models.config import ModelConfig
from trivium.models.counts import num_parameters
from trivium.planner.activations import FP32
from trivium.planner.settings import PlanSettings

LOW_RANK = ("lora", "rslora", "dora")
ADAPTERS_PER_BLOCK = {"houlsby": 2, "pfeiffer": 1, "parallel": 1}
# Those that make rows longer by positions that are not text.
LENGTHENING = ("prompt", "p_tuning")


def target_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(in, out) of each linear layer of one block; cross-attention has those of attention once more."""
    query, key = config.heads * config.head_width, config.kv_heads * config.head_width
    shapes = {
        "query": (config.width, query),
        "key": (config.width, key),
        "value": (config.width, key),
        "output": (query, config.width),
        "up": (config.width, config.mlp_width),
        "down": (config.mlp_width, config.width),
    }
    return shapes | ({"gate": shapes["up"]} if config.mlp == "gated" else {})


def num_trainable_parameters(config: ModelConfig, settings: PlanSettings) -> int:
    """How many numbers `settings.peft` trains of the model, or beside it."""
    method, width = settings.peft, config.width
    kv_width = config.kv_heads * config.head_width
    if method == "none":
        return num_parameters(config)
    if method == "bias":
        return _refuse_nothing(_num_biases(config), "biases", "bias")
    if method == "norms":
        return _norm_widths(config) * _norm_width(config) // config.width
    if method == "last_layers":
        blocks = num_parameters(config) - num_parameters(_without_last_layers(config, settings.last_layers))
        return blocks + (0 if config.norm_placement == "post" else _norm_width(config))
    if method in LOW_RANK:
        return _low_rank(config, settings)
    if method in ADAPTERS_PER_BLOCK:
        adapter = 2 * width * settings.bottleneck + settings.bottleneck + width
        return _blocks(config) * ADAPTERS_PER_BLOCK[method] * adapter
    if method == "ia3":
        return _attentions(config) * 2 * kv_width + _blocks(config) * config.mlp_width
    if method == "prefix":
        return _attentions(config) * 2 * kv_width * settings.virtual_tokens
    prompt = settings.virtual_tokens * width
    return prompt if method == "prompt" else prompt + 3 * (width * width + width)


def added_parameters(config: ModelConfig, settings: PlanSettings) -> int:
    """How many numbers the method adds to those of the model; 0 for methods that train some of these."""
    inside = ("none", "bias", "norms", "last_layers")
    return 0 if settings.peft in inside else num_trainable_parameters(config, settings)


def extra_kept_bytes(config: ModelConfig, settings: PlanSettings, tokens: int, item: int) -> int:
    """What the method's own parts keep in all blocks for T = `tokens` positions, `item` bytes a number."""
    method = settings.peft
    if method in LOW_RANK:  # what goes through the narrow middle, and under dora the unscaled output
        shapes = target_shapes(config)
        kept = sum(settings.rank + (shapes[name][1] if method == "dora" else 0) for name in settings.targets)
        return tokens * item * kept * _blocks(config)
    if method in ADAPTERS_PER_BLOCK:  # input, and the middle before and after its activation
        return tokens * item * (config.width + 2 * settings.bottleneck) * ADAPTERS_PER_BLOCK[method] * _blocks(config)
    if method == "ia3":  # what is multiplied by the factors
        kv_width = config.kv_heads * config.head_width
        return tokens * item * (_attentions(config) * 2 * kv_width + _blocks(config) * config.mlp_width)
    return 0


def unkept_bytes(config: ModelConfig, settings: PlanSettings, tokens: int, item: int) -> int:
    """What one block need not keep for T = `tokens` positions because its linear layers are frozen."""
    if settings.peft in ("none", "last_layers"):
        return 0
    trained = set(settings.targets) if settings.peft in LOW_RANK else set()
    readers = [{"query", "key", "value"}, {"gate", "up"} if config.mlp == "gated" else {"up"}]
    if config.norm_placement == "post" and item != FP32:  # each layer casts what it reads for itself
        numbers = config.width * sum(len(names - trained) for names in readers)
    else:
        numbers = config.width * sum(not names & trained for names in readers)
    # Fused attention keeps what it gives by itself, and so does relu.
    fused = item == FP32 and config.positions != "relative" and not config.attention_dropout
    if "output" not in trained and not fused:
        numbers += config.heads * config.head_width
    if "down" not in trained and (config.mlp == "gated" or config.activation != "relu"):
        numbers += config.mlp_width
    return tokens * item * numbers


def _low_rank(config: ModelConfig, settings: PlanSettings) -> int:
    shapes = target_shapes(config)
    if missing := [name for name in settings.targets if name not in shapes]:
        raise UserError(f"targets: the MLP of this model has no {', '.join(missing)}: choose of {', '.join(shapes)}")
    total = 0
    for name in dict.fromkeys(settings.targets):
        inputs, outputs = shapes[name]
        each = settings.rank * (inputs + outputs) + (outputs if settings.peft == "dora" else 0)
        total += each * (_blocks(config) if name in ("gate", "up", "down") else _attentions(config))
    return total


def _blocks(config: ModelConfig) -> int:
    return config.layers + config.decoder_layers


def _attentions(config: ModelConfig) -> int:
    """Each block of an encoder-decoder's decoder has two."""
    return config.layers + 2 * config.decoder_layers


def _norm_widths(config: ModelConfig) -> int:
    """The widths of all norms together: what a bias in each would add."""
    biased = config.model_copy(update={"norm": "layernorm"})
    return num_parameters(biased) - num_parameters(config.model_copy(update={"norm": "rmsnorm"}))


def _norm_width(config: ModelConfig) -> int:
    """Parameters of one norm of the model's width."""
    return config.width * (2 if config.norm == "layernorm" else 1)


def _num_biases(config: ModelConfig) -> int:
    norm = "layernorm_without_bias" if config.norm == "layernorm" else config.norm
    bare = {"bias": "none", "norm": norm, "head_bias": False, "head_hidden_bias": False}
    return num_parameters(config) - num_parameters(config.model_copy(update=bare))


def _without_last_layers(config: ModelConfig, layers: int) -> ModelConfig:
    """The config with so many blocks less at its end."""
    name = "decoder_layers" if config.kind == "encoder-decoder" else "layers"
    present = getattr(config, name)
    if layers > present:
        raise UserError(f"last_layers={layers}, but there are {present}: give {present} at most")
    return config.model_copy(update={name: present - layers})


def _refuse_nothing(count: int, what: str, method: str) -> int:
    if count == 0:
        raise UserError(f"peft={method} trains nothing of this model, which has no {what}: choose norms or lora")
    return count
