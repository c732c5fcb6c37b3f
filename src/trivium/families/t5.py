"""T5 (Raffel et al., 2020), T5 1.1 and Flan-T5: pre-norm without biases, positions as a learned bias by distance.

Scores of attention are not scaled (`attention_scale` 1), heads may be wider or narrower than D / H, and each stack has
one table of distances, which is published in its first block. A fresh model of this `shape` is a T5 1.1.

**The head.** The first T5 has one table for source, target and output, and multiplies hidden states by 1 / sqrt(D)
before it; T5 1.1 has an output matrix of its own and no factor. Both are told apart by `tie_word_embeddings`, which
`transformers` 5 always writes as true, with what it meant in `scale_decoder_outputs`:

| `tie_word_embeddings` | `scale_decoder_outputs` | read as |
|---|---|---|
| true | true, or not stated | one table, 1 / sqrt(D) |
| false | false, or not stated | two matrices, no factor |
| false | true | two matrices, 1 / sqrt(D) |
| true | false | two matrices, no factor |

The last row is what `transformers` 5 makes of a Flan-T5. It then computes with the file's `lm_head.weight` if there is
one, and with the embeddings if there is none (a T5 1.1 that was first trained there, where the two are always tied).
So does this library, through `stand_ins`, but the two are trained apart from then on.

Invariant its test checks: results, gradients and generated tokens are those of `transformers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trivium.errors import UserError
from trivium.families.family import Family, HeadForm, Weight
from trivium.families.reading import (
    Fields,
    build,
    read_activation,
    read_choice,
    read_fields,
    read_head,
    refuse_foreign,
    shown,
    stated,
    write_activation,
    write_fields,
    write_head,
)
from trivium.models.config import Activation, Head, Mlp, ModelConfig

FIELDS: Fields = {
    "vocab_size": ("vocab_size", 32_128),
    "d_model": ("width", 512),
    "d_kv": ("head_width", 64),
    "d_ff": ("mlp_width", 2048),
    "num_layers": ("layers", 6),
    "num_decoder_layers": ("decoder_layers", None),
    "num_heads": ("heads", 8),
    "n_positions": ("max_positions", 512),
    "relative_attention_num_buckets": ("relative_buckets", 32),
    "relative_attention_max_distance": ("relative_max_distance", 128),
    "layer_norm_epsilon": ("norm_eps", 1e-6),
    "dropout_rate": ("dropout", 0.1),
}
OF_A_TEXT = HeadForm("T5ForSequenceClassification", {"head_hidden": "tanh", "head_bias": True, "pooling": "last"})
HEADS: dict[Head, HeadForm] = {
    "lm": HeadForm("T5ForConditionalGeneration", aliases=("T5WithLMHeadModel",)),
    "classification": OF_A_TEXT,
    "scalar": OF_A_TEXT,
    "span": HeadForm("T5ForQuestionAnswering", {"head_bias": True}),
    "none": HeadForm("T5Model"),
}
ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
IMPLIED: dict[str, Any] = {
    "kind": "encoder-decoder",
    "norm": "rmsnorm",
    "norm_placement": "pre",
    "positions": "relative",
    "attention_scale": 1.0,
}


def read_config(values: Mapping[str, Any], origin: str) -> ModelConfig:
    """Our config for a config.json of model type t5."""
    refuse_foreign(values, origin)
    head = read_head(values, HEADS, "lm", origin)
    mlp, activation = _read_mlp(values, origin)
    truth = {True: True, False: False}
    says_tied = read_choice(values, "tie_word_embeddings", True, truth, origin)
    scaled = read_choice(values, "scale_decoder_outputs", says_tied, truth, origin)
    # Attention's dropout is the same as all others', unless a model of ours says otherwise.
    dropout = stated(values, "dropout_rate", FIELDS["dropout_rate"][1])
    return build(
        {
            **IMPLIED,
            "decoder_start_id": stated(values, "decoder_start_token_id", stated(values, "pad_token_id", 0)),
            "attention_dropout": stated(values, "attention_dropout", dropout),
            **read_fields(values, FIELDS),
            **head,
            "mlp": mlp,
            "activation": activation,
            "tied_embeddings": says_tied and scaled,
            "logit_scale": 0.0 if scaled and head["head"] == "lm" else 1.0,
        },
        origin,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The shape as config.json states it."""
    activation = write_activation(config.activation).replace("gelu_pytorch_tanh", "gelu_new")
    gated = config.mlp == "gated"
    return {
        **write_fields(config, FIELDS),
        **write_head(config),
        "decoder_start_token_id": config.decoder_start_id,
        "attention_dropout": config.attention_dropout,
        # "gated-gelu" alone has always meant the tanh approximation; `dense_act_fn` says it.
        "feed_forward_proj": f"gated-{activation.removesuffix('_new')}" if gated else activation,
        "dense_act_fn": activation,
        "is_gated_act": gated,
        "tie_word_embeddings": config.tied_embeddings,
        "scale_decoder_outputs": config.logit_scale != 1.0 if config.head == "lm" else config.tied_embeddings,
    }


def _read_mlp(values: Mapping[str, Any], origin: str) -> tuple[Mlp, Activation]:
    """What `feed_forward_proj` says, unless `is_gated_act` and `dense_act_fn` say otherwise."""
    form = stated(values, "feed_forward_proj", "relu")
    if not isinstance(form, str) or "-" in form.removeprefix("gated-"):
        raise UserError(f"{origin}: feed_forward_proj is {shown(form)}: use an activation, or gated- and an activation")
    gated = read_choice(values, "is_gated_act", form.startswith("gated-"), {True: True, False: False}, origin)
    name = "gelu_new" if form == "gated-gelu" else form.removeprefix("gated-")
    key = "feed_forward_proj" if values.get("dense_act_fn") is None else "dense_act_fn"
    activation = read_activation({**values, "feed_forward_proj": name}, key, name, origin)
    return "gated" if gated else "plain", activation


def weights(config: ModelConfig) -> Iterator[Weight]:
    """All tensors of a T5."""
    trunk = _trunk(config)
    yield Weight(f"{trunk}shared.weight", ("embedding.weight",))
    for stack, layers in (("encoder", config.layers), ("decoder", config.decoder_layers)):
        table = f"{trunk}{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield Weight(table, (f"{stack}.relative.weight",))
        for layer in range(layers):
            for ours, theirs in _block_modules(config, stack == "decoder").items():
                yield Weight(
                    f"{trunk}{stack}.block.{layer}.{theirs}.weight", (f"{stack}.blocks.{layer}.{ours}.weight",)
                )
        yield Weight(f"{trunk}{stack}.final_layer_norm.weight", (f"{stack}.norm.weight",))
    if config.head == "lm" and not config.tied_embeddings:
        yield Weight("lm_head.weight", ("head.output.weight",))
    for kind in ("weight", "bias"):
        if config.head in ("classification", "scalar"):
            yield Weight(f"classification_head.dense.{kind}", (f"head.hidden.{kind}",))
            yield Weight(f"classification_head.out_proj.{kind}", (f"head.output.{kind}",))
        elif config.head == "span":
            yield Weight(f"qa_outputs.{kind}", (f"head.output.{kind}",))


def _trunk(config: ModelConfig) -> str:
    """What stands before the names of all but the head: only the model for classes keeps the rest in a part."""
    return "transformer." if config.head in ("classification", "scalar") else ""


def _block_modules(config: ModelConfig, decoder: bool) -> dict[str, str]:
    """Our modules inside a block, and theirs, which are numbered by sublayer."""
    modules = {f"attention.{ours}": f"layer.0.SelfAttention.{theirs}" for ours, theirs in ATTENTION.items()}
    modules["attention_norm"] = "layer.0.layer_norm"
    if decoder:
        modules |= {f"cross.{ours}": f"layer.1.EncDecAttention.{theirs}" for ours, theirs in ATTENTION.items()}
        modules["cross_norm"] = "layer.1.layer_norm"
    mlp = f"layer.{2 if decoder else 1}"
    inner = {"mlp.gate": "wi_0", "mlp.up": "wi_1"} if config.mlp == "gated" else {"mlp.up": "wi"}
    modules |= {ours: f"{mlp}.DenseReluDense.{theirs}" for ours, theirs in {**inner, "mlp.down": "wo"}.items()}
    return {**modules, "mlp_norm": f"{mlp}.layer_norm"}


def copies(config: ModelConfig) -> dict[str, str]:
    """A file may hold the one embedding table up to four times."""
    trunk = _trunk(config)
    names = [f"{trunk}encoder.embed_tokens.weight", f"{trunk}decoder.embed_tokens.weight"]
    names += ["lm_head.weight"] if config.head == "lm" and config.tied_embeddings else []
    return dict.fromkeys(names, f"{trunk}shared.weight")


def stand_ins(config: ModelConfig) -> dict[str, str]:
    """The output matrix of a T5 1.1 may be left to the embeddings."""
    return {"lm_head.weight": "shared.weight"} if config.head == "lm" and not config.tied_embeddings else {}


T5 = Family(
    model_type="t5",
    kind="encoder-decoder",
    heads=HEADS,
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    shape={
        **IMPLIED,
        "mlp": "gated",
        "activation": "gelu_tanh",
        "tied_embeddings": False,
        "norm_eps": 1e-6,
        "max_positions": 512,
    },
    copies=copies,
    stand_ins=stand_ins,
    # Files of the first T5 hold a table of distances for cross-attention, which has never been read.
    is_redundant=lambda name: name.endswith("EncDecAttention.relative_attention_bias.weight"),
    is_optional=lambda name: name.startswith(("lm_head.", "classification_head.", "qa_outputs.")),
    ids={"pad_token_id": 0, "eos_token_id": 1},
)
