"""Generation against `transformers`, against a loop that recomputes everything, and against itself in other
batches."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from trivium import kernels
from trivium.errors import UserError
from trivium.generation import choosing, reading, rows, slots
from trivium.generation import generate as module
from trivium.generation.fast_stepper import FastStepper
from trivium.generation.filters import Past, build_pipe
from trivium.generation.generate import Generation, generate, stream
from trivium.generation.sampling import draw, sequence_seed, uniform
from trivium.generation.settings import GenerationSettings
from trivium.generation.stepper import PlainStepper, SlotRows
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.models.decoder import Decoder
from trivium.tokenizer.bpe import Tokenizer

Prompts = list[list[int]]
SAMPLED = GenerationSettings(temperature=1.3, top_k=100, top_p=0.95, min_p=0.001, seed=11, max_new_tokens=24)
GREEDY = GenerationSettings(max_new_tokens=24, ignore_eos=True)
BEAMS = GenerationSettings(max_new_tokens=8, ignore_eos=True, num_beams=2)


def changed(settings: GenerationSettings, **changes: object) -> GenerationSettings:
    """Settings with some fields replaced, checked anew."""
    return GenerationSettings(**{**settings.model_dump(), **changes})  # type: ignore[arg-type]


def recomputed(model: Decoder, prompt: list[int], settings: GenerationSettings, seed: int) -> Generation:
    """The slow path: no cache, no batch, no padding; the whole sequence is read again for every token."""
    ids, logprobs, pipe = list(prompt), [], build_pipe(settings)
    for step in range(settings.max_new_tokens):
        with torch.no_grad():
            scores = model(torch.tensor([ids]))[:, -1]
        seen = torch.zeros_like(scores, dtype=torch.bool)
        seen[0, ids] = True
        filtered = pipe(scores, Past([ids], [step], [settings.max_new_tokens], seen))
        token = int(filtered.argmax() if settings.greedy else draw(filtered, [uniform(seed, step)]))
        logprobs.append(scores.log_softmax(-1)[0, token].item())
        ids.append(token)
    return Generation("", ids[len(prompt) :], logprobs, "length", len(prompt), 0.0)


def use_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read through the model's own code, which the broken controls break."""
    monkeypatch.setattr(module, "stepper_for", PlainStepper)


def check_same(ours: list[Generation], others: list[Generation], tolerance: float = 1e-5) -> None:
    """The same tokens, and their log-probabilities to `tolerance`."""
    assert [one.tokens for one in ours] == [other.tokens for other in others]
    for one, other in zip(ours, others, strict=True):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=0, atol=tolerance)


# --- Against transformers
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [1.0, 1.25])
@pytest.mark.parametrize("use_cache", [True, False])
def test_200_greedy_tokens_equal_transformers(
    model: Decoder, twin: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Prompts, use_cache: bool, penalty: float
) -> None:
    """Three prompts of unequal length, padded on the left there and here."""
    few = [prompts[0][:5], prompts[1], prompts[2][:20]]
    longest = max(map(len, few))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in few])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in few])
    theirs = twin.generate(
        padded, attention_mask=mask, max_new_tokens=200, do_sample=False, use_cache=use_cache,
        repetition_penalty=penalty, pad_token_id=0,
    )  # fmt: skip
    settings = changed(GREEDY, max_new_tokens=200, repetition_penalty=penalty)
    ours = generate(model, tokenizer, few, settings)
    assert [g.tokens for g in ours] == theirs[:, longest:].tolist()
    assert len({token for g in ours for token in g.tokens}) > 20  # the texts are not one token repeated


# --- Cached = recomputed, batch = single
# ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [GREEDY, changed(SAMPLED, ignore_eos=True, repetition_penalty=1.1)], ids=["greedy", "sampled"]
)
def test_cached_equals_recomputed(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Prompts,
    settings: GenerationSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CACHE_STEP", 3)  # so that the slots must grow on the way
    monkeypatch.setattr(slots, "CAPACITY_STEP", 1)
    few = prompts[:8]
    slow = [recomputed(model, p, settings, sequence_seed(settings.seed, i)) for i, p in enumerate(few)]
    check_same(generate(model, tokenizer, few, settings), slow)


def test_100_prompts_together_equal_each_alone(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    alone = [generate(model, tokenizer, [prompt], GREEDY)[0] for prompt in prompts]
    check_same(generate(model, tokenizer, prompts, GREEDY), alone)
    check_same(generate(model, tokenizer, prompts, changed(GREEDY, rows_per_batch=7)), alone)


@pytest.mark.long
def test_1000_prompts_together_equal_each_alone(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    ids, rng = tokenizer.encode(text), random.Random(1)
    starts = [rng.randrange(len(ids) - 64) for _ in range(1000)]
    prompts = [ids[start : start + rng.randint(1, 64)] for start in starts]
    alone = [generate(model, tokenizer, [prompt], GREEDY)[0] for prompt in prompts]
    check_same(generate(model, tokenizer, prompts, GREEDY), alone)


@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal", "none"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_every_kind_of_decoder_batches_exactly(
    tokenizer: Tokenizer, prompts: Prompts, positions: str, norm: str
) -> None:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=4, positions=positions, norm=norm,
        mlp="plain", bias="all", max_positions=90, init_std=0.3,
    )  # fmt: skip
    model = build_model(config)
    initialise(model, config, seed=0)
    slow = [recomputed(model, p, GREEDY, 0) for p in prompts[:10]]
    check_same(generate(model, tokenizer, prompts[:10], GREEDY), slow)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_continue_alike(
    model: Decoder, tokenizer: Tokenizer, prompts: Prompts, dtype: torch.dtype
) -> None:
    """The KV cache has the precision of the weights; the first tokens, where scores are far apart, stay the same."""
    full = generate(model, tokenizer, prompts, GREEDY)
    other = generate(model.to(dtype), tokenizer, prompts, GREEDY)
    same = sum(one.tokens[0] == two.tokens[0] for one, two in zip(full, other, strict=True))
    assert same >= 90


def test_under_autocast(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    """Samples during training are drawn in its mixed precision: fp32 weights and cache, bf16 products."""
    with torch.autocast("cpu", torch.bfloat16):
        mixed = generate(model, tokenizer, prompts, GREEDY)
    full = generate(model, tokenizer, prompts, GREEDY)
    assert sum(one.tokens[0] == two.tokens[0] for one, two in zip(full, mixed, strict=True)) >= 90


def test_logits_are_computed_for_the_newest_position_only(
    model: Decoder, tokenizer: Tokenizer, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_the_plain_way(monkeypatch)
    shapes: list[tuple[int, ...]] = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: shapes.append(tuple(hidden.shape)) or logits(hidden))
    generate(model, tokenizer, prompts[:9], GREEDY)
    assert all(shape[1:] == (model.config.width,) for shape in shapes)
    assert sum(shape[0] for shape in shapes) == 9 * GREEDY.max_new_tokens


def test_the_fastest_way_is_taken_where_it_is_known(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    """And its tokens are those of the plain way, also with keys and values in int8 (whose codes differ where rounding
    differs, so that scores are less near each other)."""
    if not kernels.available():
        pytest.skip("the kernels were not built here")
    assert isinstance(module.stepper_for(model), FastStepper)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(module.stepper_for(model), PlainStepper)
    assert isinstance(module.stepper_for(model.double()), PlainStepper)
    model.float()
    for settings in (GREEDY, changed(GREEDY, kv_cache="int8", speculate=3), SAMPLED):
        fast = generate(model, tokenizer, prompts[:30], settings)
        with pytest.MonkeyPatch.context() as patch:
            use_the_plain_way(patch)
            plain = generate(model, tokenizer, prompts[:30], settings)
        # One code that rounds otherwise moves a key by 1/127: on one processor that came to 4e-3.
        check_same(fast, plain, 1e-2 if settings.kv_cache == "int8" else 1e-5)


def check_padding_is_exact(
    model: Decoder, tokenizer: Tokenizer, prompt: list[int], filler: list[int], settings: GenerationSettings
) -> None:
    """Beside a text that is 0 to 64 tokens longer, a prompt continues as it does alone."""
    alone = generate(model, tokenizer, [prompt], settings)
    for pads in range(65):
        together = generate(model, tokenizer, [prompt, filler[: len(prompt) + pads]], settings)
        check_same(together[:1], alone)


def test_right_padding_is_exact(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    check_padding_is_exact(model, tokenizer, ids[:9], ids[100:200], GREEDY)


def test_left_padding_is_exact(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    """Which beam search has."""
    ids = tokenizer.encode(text)
    check_padding_is_exact(model, tokenizer, ids[:9], ids[100:200], BEAMS)


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["right", "left"])
def test_the_check_sees_attended_padding(
    model: Decoder, tokenizer: Tokenizer, text: str, settings: GenerationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken controls: a row attends to as many places as its longest neighbour has; padding without segments."""
    use_the_plain_way(monkeypatch)
    made, padded = SlotRows.__init__, reading.padded

    def broken(held: SlotRows, *given: object) -> None:
        made(held, *given)  # type: ignore[arg-type]
        held.places = None

    monkeypatch.setattr(SlotRows, "__init__", broken)
    monkeypatch.setattr(reading, "padded", lambda *given, **named: (padded(*given, **named)[0], None))
    ids = tokenizer.encode(text)
    with pytest.raises(AssertionError):
        check_padding_is_exact(model, tokenizer, ids[:9], ids[100:200], settings)


def test_the_check_sees_shifted_positions(
    model: Decoder, tokenizer: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: new tokens are numbered one too high. Rotary attention only sees distances, and must already
    show that."""
    use_the_plain_way(monkeypatch)
    hidden = model.hidden

    def shifted(ids: torch.Tensor, *, cache: SlotRows) -> object:
        return hidden(ids, cache=cache, positions=torch.tensor([cache.length]) if ids.shape[1] == 1 else None)

    ids = tokenizer.encode(text)
    alone = generate(model, tokenizer, [ids[:9]], GREEDY)
    monkeypatch.setattr(model, "hidden", shifted)
    with pytest.raises(AssertionError):
        check_same(generate(model, tokenizer, [ids[:9]], GREEDY), alone)


# --- Seeds
# ------------------------------------------------------------------------------------------------------


def check_batch_of_32_equals_singles(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    """Sampled together in two orders, and one by one, with the same seed for each prompt."""
    seeds = [sequence_seed(SAMPLED.seed, i) for i in range(32)]
    together = generate(model, tokenizer, prompts[:32], SAMPLED)
    alone = [generate(model, tokenizer, [p], SAMPLED, seeds=[s])[0] for p, s in zip(prompts, seeds, strict=False)]
    check_same(together, alone)
    order = random.Random(1).sample(range(32), 32)
    shuffled = generate(model, tokenizer, [prompts[i] for i in order], SAMPLED, seeds=[seeds[i] for i in order])
    check_same(shuffled, [together[i] for i in order])


def test_a_batch_of_32_equals_32_singles(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    check_batch_of_32_equals_singles(model, tokenizer, prompts)


def test_the_check_sees_a_shared_generator(
    model: Decoder, tokenizer: Tokenizer, prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken control: rows take turns at one generator, as with `torch.multinomial`."""
    shared = random.Random(0)
    monkeypatch.setattr(choosing, "uniform", lambda seed, step: shared.random())
    with pytest.raises(AssertionError):
        check_batch_of_32_equals_singles(model, tokenizer, prompts)


def test_the_seed_decides(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    same = [prompts[0]] * 4
    texts = [g.text for seed in (1, 2) for g in generate(model, tokenizer, same, changed(SAMPLED, seed=seed))]
    assert len(set(texts)) == 8  # equal prompts differ by their index, and by the seed
    assert texts[:4] == [g.text for g in generate(model, tokenizer, same, changed(SAMPLED, seed=1))]


# --- Ends
# -------------------------------------------------------------------------------------------------------


def test_rows_that_end_early_leave_without_a_trace(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    """With a common token as end, rows leave the batch at many different steps."""
    settings = changed(SAMPLED, repetition_penalty=1.2, max_new_tokens=40)
    ends = sorted({token for g in generate(model, tokenizer, prompts[:5], settings) for token in g.tokens})[::5]
    together = generate(model, tokenizer, prompts[:40], settings, eos_ids=ends)
    alone = [
        generate(model, tokenizer, [p], settings, seeds=[sequence_seed(settings.seed, i)], eos_ids=ends)[0]
        for i, p in enumerate(prompts[:40])
    ]
    check_same(together, alone)
    assert len({len(g.tokens) for g in together}) > 10
    for g in together:
        assert g.finish_reason == ("stop" if g.tokens[-1] in ends else "length")
        assert not set(g.tokens[:-1]) & set(ends)


def test_end_of_text(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    """The token that ended a text is reported but not shown; with ignore_eos it does not end it."""
    free = generate(model, tokenizer, prompts[:1], GREEDY)[0]
    end = free.tokens[7]
    at = free.tokens.index(end)
    cut = generate(model, tokenizer, prompts[:1], changed(GREEDY, ignore_eos=False), eos_ids=[end])[0]
    assert cut.tokens == free.tokens[: at + 1] and cut.finish_reason == "stop"
    assert cut.text == tokenizer.decode(free.tokens[:at])
    assert generate(model, tokenizer, prompts[:1], GREEDY, eos_ids=[end])[0].tokens == free.tokens


def test_text_is_the_tokens_text(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    """Random models emit broken UTF-8, which streaming must show as decoding the whole does."""
    for g in generate(model, tokenizer, prompts, changed(SAMPLED, temperature=2.0)):
        assert g.text == tokenizer.decode(g.tokens, skip_special=True)


def test_stop_strings_across_tokens(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    """Any piece of the text, wherever tokens begin and end, stops it there; streaming shows nothing of it."""
    free = generate(model, tokenizer, prompts[3:4], SAMPLED)[0]
    boundaries = {len(tokenizer.decode(free.tokens[:n])) for n in range(len(free.tokens))}
    across = 0
    for start in range(len(free.text) - 4):
        stop = free.text[start : start + 4]
        at = free.text.find(stop)
        across += bool(boundaries & set(range(at + 1, at + 4)))
        pieces: list[str] = []
        cut = generate(
            model,
            tokenizer,
            prompts[3:4],
            changed(SAMPLED, stop=[stop]),
            stream=lambda _, piece, p=pieces: p.append(piece),
        )[0]
        assert cut.text == free.text[:at] == "".join(pieces)
        assert cut.finish_reason == "stop" and free.tokens[: len(cut.tokens)] == cut.tokens
    assert across > 10


def test_a_special_token_as_stop_string(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    """It never appears as text, so it is matched as a token, also when end-of-text tokens are ignored."""
    assert tokenizer.eos_id is not None
    settings = changed(GREEDY, stop=[tokenizer.decode([tokenizer.eos_id]), "a"])
    assert rows.build_rules(model.config, tokenizer, settings, None).ends == {tokenizer.eos_id}
    assert rows.build_rules(model.config, tokenizer, changed(settings, stop=[]), [7, 8]).ends == set()
    assert rows.build_rules(model.config, tokenizer, GenerationSettings(), [7, 8]).ends == {7, 8}


def test_the_tail_of_a_long_embedding_table_is_never_chosen(model: Decoder, text: str, prompts: Prompts) -> None:
    """The model knows 400 ids, this tokenizer only 300 of them."""
    smaller = Tokenizer.train(texts=[text], vocab_size=300)
    for settings in (changed(GREEDY, repetition_penalty=1.1), changed(SAMPLED, temperature=3.0, top_k=0, top_p=1.0)):
        tokens = [token for g in generate(model, smaller, prompts, settings) for token in g.tokens]
        assert max(tokens) < smaller.vocab_size <= 300


def test_the_context_ends_a_text(model: Decoder, tokenizer: Tokenizer, text: str) -> None:
    context, ids = model.config.max_positions, tokenizer.encode(text)
    settings = changed(GREEDY, max_new_tokens=50)
    room_for_3, room_for_50 = generate(model, tokenizer, [ids[: context - 3], ids[:10]], settings)
    assert (len(room_for_3.tokens), room_for_3.finish_reason) == (3, "length")
    assert (len(room_for_50.tokens), room_for_50.finish_reason) == (50, "length")
    with pytest.raises(UserError, match=rf"prompt 1 has {context} tokens .* holds {context}"):
        generate(model, tokenizer, [ids[:10], ids[:context]], settings)


# --- Streaming
# --------------------------------------------------------------------------------------------------


def test_streamed_pieces_join_to_the_texts(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    shown = [""] * len(prompts)

    def show(index: int, piece: str) -> None:
        assert piece
        shown[index] += piece

    texts = [g.text for g in generate(model, tokenizer, prompts, SAMPLED, stream=show)]
    assert shown == texts
    for index in (0, 5, 17):
        one = changed(SAMPLED, seed=index)
        pieces = list(stream(model, tokenizer, prompts[index], one))
        assert len(pieces) > 5
        assert "".join(pieces) == generate(model, tokenizer, [prompts[index]], one)[0].text


def test_a_stream_says_what_is_wrong_at_once_and_restores_the_mode(
    model: Decoder, tokenizer: Tokenizer, prompts: Prompts
) -> None:
    with pytest.raises(UserError, match="context"):
        stream(model, tokenizer, [1] * 1000)
    model.train()
    pieces = stream(model, tokenizer, prompts[0], GREEDY)
    next(pieces)
    assert not model.training
    del pieces
    assert model.training


# --- Prompts, modes, mistakes
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize("adds_bos", [False, True])
def test_empty_and_text_prompts(model: Decoder, tokenizer: Tokenizer, tmp_path: Path, adds_bos: bool) -> None:
    """The rule of prompts.py: text gets a beginning only if asked; nothing becomes the token that begins
    documents."""
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": adds_bos}))
    tokenizer = Tokenizer.load(tmp_path)
    begin = tokenizer.bos_id
    assert begin is not None
    ids = tokenizer.encode("def f(x):")

    def tokens(prompt: str | list[int], add_bos: str) -> list[int]:
        return generate(model, tokenizer, [prompt], changed(GREEDY, add_bos=add_bos))[0].tokens

    with_begin, without = tokens([begin, *ids], "never"), tokens(ids, "never")
    assert with_begin != without
    assert tokens("def f(x):", "never") == without == tokens(ids, "always")
    assert tokens("def f(x):", "always") == with_begin
    assert tokens("def f(x):", "auto") == (with_begin if adds_bos else without)
    assert tokens("", "never") == tokens([], "auto") == tokens([begin], "never")


def test_dropout_is_off_and_modes_come_back(tokenizer: Tokenizer, prompts: Prompts) -> None:
    config = ModelConfig(vocab_size=tokenizer.vocab_size, width=32, layers=2, heads=2, dropout=0.5, init_std=0.2)
    model = build_model(config)
    initialise(model, config, seed=0)
    model.train()
    model.stack.blocks[1].eval()  # a part that someone froze
    modes = [part.training for part in model.modules()]
    assert (
        generate(model, tokenizer, prompts[:3], GREEDY)[0].tokens
        == generate(model, tokenizer, prompts[:3], GREEDY)[0].tokens
    )
    assert [part.training for part in model.modules()] == modes


@pytest.mark.parametrize("bad", [-1, 400, 10**9])
def test_refuses_ids_the_model_does_not_know(model: Decoder, tokenizer: Tokenizer, bad: int) -> None:
    with pytest.raises(UserError, match="prompt 1 holds an id outside the model's vocabulary"):
        generate(model, tokenizer, [[1], [2, bad]], GREEDY)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_refuses_scores_that_are_not_numbers(
    model: Decoder, tokenizer: Tokenizer, settings: GenerationSettings
) -> None:
    with torch.no_grad():
        model.head.output.weight[7] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        generate(model, tokenizer, [[1, 2]], settings)


def test_refuses_one_text_in_place_of_a_list(model: Decoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="sequence of prompts"):
        generate(model, tokenizer, "a text", GREEDY)
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        generate(model, tokenizer, ["a text"], GREEDY, seeds=[1, 2])
    assert generate(model, tokenizer, [], GREEDY) == []


def test_reports_progress_and_speed(model: Decoder, tokenizer: Tokenizer, prompts: Prompts) -> None:
    class Counts:
        total, done = 0, 0

        def start(self, description: str, total: int | None = None, unit: str = "") -> None:
            self.total = total or 0

        def advance(self, amount: int = 1) -> None:
            self.done += amount

        def note(self, text: str) -> None: ...

        def finish(self) -> None: ...

    counts = Counts()
    generations = generate(model, tokenizer, prompts[:9], changed(SAMPLED, rows_per_batch=4), progress=counts)
    assert (counts.total, counts.done) == (9, 9)
    assert all(g.tokens_per_second > 0 and len(g.logprobs) == len(g.tokens) for g in generations)
    assert [g.prompt_tokens for g in generations] == [len(prompt) for prompt in prompts[:9]]
