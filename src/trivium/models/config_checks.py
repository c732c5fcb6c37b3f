"""What a model config must fulfil as a whole; each check is one line of one list, so that all mistakes are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trivium.models.config import ModelConfig

# No count of any model comes near this; beyond it, products of two counts would no longer fit 64 bits.
LARGEST = 1 << 30


def mistakes_of(config: ModelConfig) -> list[str]:
    """What is wrong with a config whose widths are resolved, each with its cure; empty: nothing."""
    return [*_attention_mistakes(config), *_kind_mistakes(config), *_head_mistakes(config)]


def _attention_mistakes(config: ModelConfig) -> list[str]:
    found: list[str] = []
    if config.heads % config.kv_heads:
        found.append(f"kv_heads={config.kv_heads} does not divide heads={config.heads}: choose a divisor of it")
    if config.positions == "rotary" and (config.rope_width % 2 or config.rope_width == 0):
        found.append(
            f"rotary positions turn pairs, so head_width={config.head_width} x rope_share={config.rope_share:g} must "
            "be even and not 0: change width, heads or rope_share, or choose other positions"
        )
    if config.positions != "rotary" and (config.rope_scaling is not None or config.local_rope_theta):
        found.append(f"rope_scaling and local_rope_theta need positions=rotary (it is {config.positions})")
    if 0 < config.local_rope_theta <= 1:
        found.append(f"local_rope_theta={config.local_rope_theta:g} must be above 1, or 0 for that of the other layers")
    if config.positions == "sinusoidal" and config.width % 2:
        found.append(f"sinusoidal positions come in pairs, so width={config.width} must be even")
    if config.rope_scaling is not None and config.rope_scaling.method in ("ntk", "dynamic") and config.rope_width <= 2:
        found.append(f"rope_scaling {config.rope_scaling.method} needs more than one pair in each head to turn")
    if config.positions == "relative" and config.relative_buckets % 4:
        found.append(f"relative_buckets={config.relative_buckets} must be a multiple of 4")
    if config.positions == "relative" and config.relative_max_distance <= config.relative_buckets // 2:
        found.append(
            f"relative_max_distance={config.relative_max_distance} must be above half of "
            f"relative_buckets={config.relative_buckets}: that many distances have a bucket of their own"
        )
    if config.position_offset and config.positions != "learned":
        found.append("position_offset needs positions=learned: set it to 0")
    if any(not 0 <= layer < config.layers for layer in config.full_attention_layers):
        found.append(f"full_attention_layers names layers that do not exist; there are 0 to {config.layers - 1}")
    if config.full_attention_layers and not config.sliding_window:
        found.append("full_attention_layers needs a sliding_window: without one every layer sees everything")
    return found


def _kind_mistakes(config: ModelConfig) -> list[str]:
    found: list[str] = []
    if config.kind != "encoder-decoder" and config.decoder_layers:
        found.append(f"decoder_layers is for kind=encoder-decoder (it is {config.kind}): leave it out")
    if config.kind == "encoder-decoder":
        if config.sliding_window:
            found.append("sliding_window is not for an encoder-decoder: set it to 0")
        if config.segment_types:
            found.append("segment_types is not for an encoder-decoder: set it to 0")
        if config.decoder_start_id >= config.vocab_size:
            found.append(f"decoder_start_id={config.decoder_start_id} is beyond vocab_size={config.vocab_size}")
    if config.residual == "parallel" and (config.norm_placement != "pre" or config.kind == "encoder-decoder"):
        found.append("residual=parallel needs norm_placement=pre and a single stack")
    if not config.norm_first_attention and config.norm_placement != "pre":
        found.append("norm_first_attention=false needs norm_placement=pre")
    return found


def _head_mistakes(config: ModelConfig) -> list[str]:
    found: list[str] = []
    labelled = config.head in ("classification", "token_classification")
    if labelled and not config.labels:
        found.append(f"head={config.head} needs labels: the names of its classes")
    if not labelled and config.labels:
        found.append(f"labels need head=classification or token_classification (it is {config.head})")
    if config.head == "none" and config.head_bias:
        found.append("head_bias needs a head")
    if config.head != "lm" and (config.logit_scale != 1.0 or config.logit_softcap):
        found.append("logit_scale and logit_softcap need head=lm")
    return found
