"""How many bytes reading and writing texts needs, from the model's config alone (no torch).

Nothing is kept for a backward pass, so activations are those of the widest moment: the residual stream as the callers
hold it, and inside a block either what the MLP makes or what attention does. Beside them lie
  weights       as they are stored (`weights.py`): in the precision, or packed
  unpacked      where a matrix is packed and many positions are read, one matrix at a time in full (the largest)
  kv_cache      keys and values of B rows (with beams B x beams) of prompt and new tokens in slots whose capacity is a
                multiple of 64; an encoder-decoder's also those of the source. Beams that change places are copied, so
                theirs are held twice
  logits        of generation (B, V): the scores in fp32, their log-probabilities and a filtered copy; of evaluation a
                bounded number of positions at a time

Invariant its test checks: the sum without framework and allocator is that of a real pass's tensors within 15 %.

Letters as in `models/config.py`: B rows, T positions, D width, H heads, K key/value heads, N head width, F MLP width,
V vocabulary.
"""

from __future__ import annotations

from trivium.models.config import ModelConfig
from trivium.planner.activations import FP32, INT64, item_bytes
from trivium.planner.allocator import INFERENCE_HOLES, READING_HOLES, Device, cuda_idle_bytes
from trivium.planner.memory import INFERENCE_FRAMEWORK_BYTES, SOFTMAX_BYTES, MemoryPlan, chunk_rows
from trivium.planner.weights import quantized_matrices, stored_weights_bytes
from trivium.quantization.schemes import Scheme
from trivium.runtime import Precision

# Capacity of a slot is a multiple of this (`generation/slots.py`).
CAPACITY_STEP = 64
# New positions that beams have room for at first (`generation/beam_search.py`).
BEAM_CACHE_STEP = 32
# Of prompts, so many positions are read at a time (`generation/batching.py`); beams read theirs whole.
PROMPT_POSITIONS = 1024
# What a process that turns texts into ids and back holds besides: tokenizer, engine.
TEXT_BYTES = 8 << 20
# Log-likelihoods are made of so many logits at a time (`generation/scoring.py`).
LOGITS_PER_CHUNK = 1 << 24


def generation_memory(
    config: ModelConfig,
    *,
    rows: int,
    prompt_length: int,
    new_tokens: int,
    precision: Precision,
    scheme: Scheme | None = None,
    num_beams: int = 1,
    source_length: int = 0,
    kv_int8: bool = False,
    device: Device = "cpu",
    framework_bytes: int | None = None,
) -> MemoryPlan:
    """The plan of continuing `rows` prompts together by `new_tokens` each.

    Of an encoder-decoder: of writing `rows` targets for sources of `source_length` positions (0: `prompt_length`).
    `num_beams`: beams searched for each. `kv_int8`: keys and values are stored as int8 codes.
    """
    beams = rows * num_beams
    logits = beams * config.vocab_size * 3 * FP32
    if config.kind == "encoder-decoder":
        source = source_length or prompt_length
        memory = rows * source * _position_bytes(config, precision)
        capacity = _grown_capacity(1, new_tokens, num_beams) if num_beams > 1 else 1 + new_tokens
        cache = cache_bytes(config, beams, capacity, precision)
        held = num_beams * memory + cache  # the sources of all beams, and what was read of the targets
        held += max(memory, cache) if num_beams > 1 else 0  # what is copied when beams change places
        encoded = rows * source * config.width * item_bytes(precision)
        reading = pass_bytes(config, rows, source, precision)
        activations = max(reading - held, encoded + pass_bytes(config, beams, 1, precision))
        unpacks, share = rows * source > 1, READING_HOLES
    else:
        capacity = _grown_capacity(prompt_length, new_tokens, num_beams)
        held = cache_bytes(config, beams, capacity, precision, kv_int8=kv_int8) * (2 if num_beams > 1 else 1)
        most = rows * prompt_length if num_beams > 1 else min(rows * prompt_length, PROMPT_POSITIONS)
        read = pass_bytes(config, max(1, most // prompt_length), min(most, prompt_length), precision)
        activations = max(read, pass_bytes(config, beams, 1, precision))
        unpacks, share = rows * prompt_length > 1, INFERENCE_HOLES
    return _plan(
        config,
        precision,
        scheme,
        device,
        framework_bytes,
        activations=activations,
        logits=logits,
        kv_cache=held,
        unpacks=unpacks,
        holes=int(share * activations + (INFERENCE_HOLES * held if num_beams > 1 else 0)),
        writes=True,
    )


def evaluation_memory(
    config: ModelConfig,
    *,
    rows: int,
    length: int,
    precision: Precision,
    scheme: Scheme | None = None,
    source_length: int = 0,
    targets: int | None = None,
    device: Device = "cpu",
    framework_bytes: int | None = None,
) -> MemoryPlan:
    """The plan of scoring `rows` x `length` positions at a time with a model held in `precision`.

    `source_length`: of an encoder-decoder's sources (0: `length`). `targets`: how many positions are scored (None:
    all). Heads other than `lm` need next to nothing.
    """
    learned = rows * length if targets is None else targets
    item = item_bytes(precision)
    logits = learned * config.width * item
    if config.head == "lm" and config.kind == "encoder":  # by the chunked cross-entropy
        logits += min(chunk_rows(config, precision), learned) * config.vocab_size * item
        logits += SOFTMAX_BYTES if item != FP32 else 0
    elif config.head == "lm":
        chunk = max(1, min(LOGITS_PER_CHUNK // config.vocab_size, learned))
        scores = chunk * config.vocab_size
        logits += scores * (2 * FP32 + (item if item != FP32 else 0))  # as made, in fp32, and their logarithms
    read, held = pass_bytes(config, rows, length, precision), 0
    # They come after the blocks have given up theirs, but do not fit into what those leave.
    beside = max(0, logits + rows * length * config.width * item - read)
    holes = logits - beside
    if config.kind == "encoder-decoder":  # keys and values of the source lie among what the blocks leave: nothing fits
        source = source_length or length
        held = rows * source * _position_bytes(config, precision)
        read = max(read + rows * source * config.width * item, pass_bytes(config, rows, source, precision) - held)
    return _plan(
        config,
        precision,
        scheme,
        device,
        framework_bytes,
        activations=read,
        logits=beside,
        kv_cache=held,
        unpacks=rows * length > 1,
        holes=holes + int(READING_HOLES * read),
    )


def cache_bytes(config: ModelConfig, rows: int, capacity: int, precision: Precision, *, kv_int8: bool = False) -> int:
    """Keys and values of `rows` texts with room for `capacity` positions each, of all layers that have a past."""
    layers = config.decoder_layers or config.layers
    vector = config.head_width + FP32 if kv_int8 else config.head_width * item_bytes(precision)
    return 2 * layers * rows * capacity * config.kv_heads * vector


def pass_bytes(config: ModelConfig, rows: int, length: int, precision: Precision) -> int:
    """The widest moment of reading B x T positions without gradients."""
    tokens, item = rows * length, item_bytes(precision)
    query, key = config.heads * config.head_width, config.kv_heads * config.head_width
    stream = 4 * config.width  # embeddings, what enters the block, the sum after attention, what a sublayer reads
    attention = 3 * query + 3 * key  # queries, keys and values; turned ones beside them; the output
    mlp = 2 * config.mlp_width
    scores = 0
    if config.positions in ("relative", "alibi"):  # a bias for each head, in its own type and in the products'
        scores = config.heads * length**2 * (FP32 + item) + length**2 * INT64
    if config.attention_softcap:
        scores += 3 * rows * config.heads * length**2 * FP32
    return tokens * item * (stream + max(attention, mlp)) + tokens * INT64 + scores


def _grown_capacity(prompt_length: int, new_tokens: int, num_beams: int) -> int:
    """Positions there is room for in the end: whole steps of slots; with beams a little, doubled when it is used up."""
    if num_beams == 1:
        return -(-(prompt_length + new_tokens) // CAPACITY_STEP) * CAPACITY_STEP
    capacity = prompt_length + min(BEAM_CACHE_STEP, new_tokens)
    while capacity < prompt_length + new_tokens:
        capacity *= 2
    return capacity


def _position_bytes(config: ModelConfig, precision: Precision) -> int:
    """Keys and values that all layers of a decoder hold of one position."""
    return cache_bytes(config, 1, 1, precision)


def _plan(
    config: ModelConfig,
    precision: Precision,
    scheme: Scheme | None,
    device: Device,
    framework_bytes: int | None,
    *,
    activations: int,
    logits: int,
    kv_cache: int,
    unpacks: bool,
    holes: int,
    writes: bool = False,
) -> MemoryPlan:
    """The parts of a pass without gradients; only what passes by leaves holes."""
    packed = scheme is not None and scheme.packs
    if packed and unpacks:
        blocks = (matrix for matrix in quantized_matrices(config) if matrix.name != "embedding")
        activations += max(m.outputs * m.inputs for m in blocks) * item_bytes(precision)
    if framework_bytes is None:
        framework_bytes = INFERENCE_FRAMEWORK_BYTES + (TEXT_BYTES if writes else 0) if device == "cpu" else 0
    return MemoryPlan(
        weights_bytes=stored_weights_bytes(config, precision, scheme),
        gradients_bytes=0,
        optimizer_bytes=0,
        activations_bytes=activations,
        logits_bytes=logits,
        framework_bytes=framework_bytes,
        allocator_bytes=holes if device == "cpu" else cuda_idle_bytes(activations + logits + kv_cache),
        kv_cache_bytes=kv_cache,
    )
