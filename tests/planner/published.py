"""Published models: what their config.json states of their shape, and how many parameters their checkpoints hold.

The counts are those of the class that `architectures` names, tied weights counted once; `test_published_counts.py`
compares them with ours and with the class itself, built without memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """One published model."""

    parameters: int
    config: dict[str, Any]


def _bert(vocabulary: int, width: int, layers: int) -> dict[str, Any]:
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    rest = {"vocab_size": vocabulary, "intermediate_size": 4 * width, "max_position_embeddings": 512}
    return {"architectures": ["BertForMaskedLM"], "model_type": "bert", "type_vocab_size": 2, **shape, **rest}


def _bare(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The same without its head, with a pooler."""
    return {**config, "architectures": [architecture]}


def _roberta(width: int, layers: int) -> dict[str, Any]:
    changes = {"architectures": ["RobertaForMaskedLM"], "model_type": "roberta", "type_vocab_size": 1}
    return {**_bert(50265, width, layers), **changes, "max_position_embeddings": 514, "layer_norm_eps": 1e-5}


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 1024, "vocab_size": 50257}
    return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **shape}


def _bloom(width: int, layers: int, heads: int) -> dict[str, Any]:
    shape = {"hidden_size": width, "n_layer": layers, "n_head": heads, "vocab_size": 250880}
    return {"architectures": ["BloomForCausalLM"], "model_type": "bloom", **shape}


def _llama(
    vocabulary: int, width: int, layers: int, heads: tuple[int, int], inner: int, tied: bool = False, **more: Any
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": inner,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
        **more,
    }


def _qwen2(*shape: Any, **more: Any) -> dict[str, Any]:
    return {**_llama(*shape, **more), "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


def _t5(width: int, layers: int, heads: int, inner: int, key: int = 64, *, gated: bool = False) -> dict[str, Any]:
    shape = {"d_model": width, "num_layers": layers, "num_decoder_layers": layers, "num_heads": heads}
    rest = {"d_ff": inner, "d_kv": key, "relative_attention_num_buckets": 32, "vocab_size": 32128}
    form = {"feed_forward_proj": "gated-gelu" if gated else "relu", "tie_word_embeddings": not gated}
    return {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", **shape, **rest, **form}


def _bart(width: int, layers: int, heads: int, vocabulary: int = 50265) -> dict[str, Any]:
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", 4 * width))
    }
    shape = {"d_model": width, "vocab_size": vocabulary, "max_position_embeddings": 1024}
    return {"architectures": ["BartModel"], "model_type": "bart", **shape, **sides}


PUBLISHED = {
    "bert-base-uncased": Published(109_514_298, _bert(30522, 768, 12)),
    "bert-base-cased": Published(108_340_804, _bert(28996, 768, 12)),
    "bert-large-uncased": Published(335_174_458, _bert(30522, 1024, 24)),
    "bert-large-cased": Published(333_610_308, _bert(28996, 1024, 24)),
    "bert-base-uncased, bare": Published(109_482_240, _bare(_bert(30522, 768, 12), "BertModel")),
    "bert-base-cased, bare": Published(108_310_272, _bare(_bert(28996, 768, 12), "BertModel")),
    "bert-large-uncased, bare": Published(335_141_888, _bare(_bert(30522, 1024, 24), "BertModel")),
    "bert-large-cased, bare": Published(333_579_264, _bare(_bert(28996, 1024, 24), "BertModel")),
    "roberta-base, bare": Published(124_645_632, _bare(_roberta(768, 12), "RobertaModel")),
    "roberta-large, bare": Published(355_359_744, _bare(_roberta(1024, 24), "RobertaModel")),
    "roberta-base": Published(124_697_433, _roberta(768, 12)),
    "roberta-large": Published(355_412_057, _roberta(1024, 24)),
    "gpt2": Published(124_439_808, _gpt2(768, 12, 12)),
    "gpt2-medium": Published(354_823_168, _gpt2(1024, 24, 16)),
    "gpt2-large": Published(774_030_080, _gpt2(1280, 36, 20)),
    "gpt2-xl": Published(1_557_611_200, _gpt2(1600, 48, 25)),
    "bloom-560m": Published(559_214_592, _bloom(1024, 24, 16)),
    "bloom-1b7": Published(1_722_408_960, _bloom(2048, 24, 16)),
    "bloom-7b1": Published(7_069_016_064, _bloom(4096, 30, 32)),
    "bloom": Published(176_247_271_424, _bloom(14336, 70, 112)),
    "llama-2-7b": Published(6_738_415_616, _llama(32000, 4096, 32, (32, 32), 11008)),
    "llama-2-13b": Published(13_015_864_320, _llama(32000, 5120, 40, (40, 40), 13824)),
    "llama-2-70b": Published(68_976_648_192, _llama(32000, 8192, 80, (64, 8), 28672)),
    "llama-3-8b": Published(8_030_261_248, _llama(128256, 4096, 32, (32, 8), 14336)),
    "llama-3-70b": Published(70_553_706_496, _llama(128256, 8192, 80, (64, 8), 28672)),
    "llama-3.2-1b": Published(1_235_814_400, _llama(128256, 2048, 16, (32, 8), 8192, True, head_dim=64)),
    "llama-3.2-3b": Published(3_212_749_824, _llama(128256, 3072, 28, (24, 8), 8192, True, head_dim=128)),
    "smollm2-135m": Published(134_515_008, _llama(49152, 576, 30, (9, 3), 1536, True)),
    "smollm2-360m": Published(361_821_120, _llama(49152, 960, 32, (15, 5), 2560, True)),
    "smollm2-1.7b": Published(1_711_376_384, _llama(49152, 2048, 24, (32, 32), 8192, True)),
    "qwen2-0.5b": Published(494_032_768, _qwen2(151936, 896, 24, (14, 2), 4864, True)),
    "qwen2-1.5b": Published(1_543_714_304, _qwen2(151936, 1536, 28, (12, 2), 8960, True)),
    "qwen2-7b": Published(7_615_616_512, _qwen2(152064, 3584, 28, (28, 4), 18944)),
    "qwen2-72b": Published(72_706_203_648, _qwen2(152064, 8192, 80, (64, 8), 29568)),
    "t5-small": Published(60_506_624, _t5(512, 6, 8, 2048)),
    "t5-base": Published(222_903_552, _t5(768, 12, 12, 3072)),
    "t5-large": Published(737_668_096, _t5(1024, 24, 16, 4096)),
    "t5-3b": Published(2_851_598_336, _t5(1024, 24, 32, 16384, 128)),
    "t5-11b": Published(11_307_321_344, _t5(1024, 24, 128, 65536, 128)),
    "t5-v1.1-small": Published(76_961_152, _t5(512, 8, 6, 1024, gated=True)),
    "t5-v1.1-base": Published(247_577_856, _t5(768, 12, 12, 2048, gated=True)),
    "t5-v1.1-large": Published(783_150_080, _t5(1024, 24, 16, 2816, gated=True)),
    "t5-v1.1-xl": Published(2_849_757_184, _t5(2048, 24, 32, 5120, gated=True)),
    "t5-v1.1-xxl": Published(11_135_332_352, _t5(4096, 24, 64, 10240, gated=True)),
    "bart-base": Published(139_420_416, _bart(768, 6, 12)),
    "bart-large": Published(406_291_456, _bart(1024, 12, 16)),
}
