"""Examples cut to size and packed: something of each target stays, and no example touches another."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from trivium.data.batch import IGNORED
from trivium.data.examples import collate_examples
from trivium.data.order import draw_of
from trivium.finetuning.instruct import conversation_of
from trivium.finetuning.pieces import InstructPieces, InstructRows, Left, Sourced, cut_to, rendered_pieces
from trivium.finetuning.rendering import Rendered, Renderer
from trivium.models.build import build_model, initialise
from trivium.models.config import ModelConfig
from trivium.tokenizer.bpe import Tokenizer
from trivium.training.token_objective import TokenObjective


def rendered(prompt: int, answer: int) -> Rendered:
    """Ids 0, 1, 2, ..., of which the last `answer` are learned."""
    return Rendered(list(range(prompt + answer)), [False] * prompt + [True] * answer)


def test_whatever_is_cut_something_is_learned_and_the_prompt_goes_first() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        prompt, answer, length = draw.randint(1, 60), draw.randint(1, 60), draw.randint(2, 40)
        cut = cut_to(rendered(prompt, answer), length)
        assert cut is not None and any(cut.learned) and not cut.learned[0]
        assert len(cut.ids) - 1 <= length
        kept = sum(cut.learned)
        answer_ids = [token for token, learned in zip(cut.ids, cut.learned, strict=True) if learned]
        assert answer_ids == list(range(prompt, prompt + kept)), "an answer loses its end only"
        assert cut.ids[-kept - 1] == prompt - 1, "what was said last before an answer stays"
        assert cut.is_cut == (prompt + answer - 1 > length)
        if kept < answer:
            assert len(cut.ids) - kept <= max(1, length // 4), "the prompt had been cut before"


def test_the_beginning_of_a_prompt_stays() -> None:
    cut = cut_to(rendered(100, 10), 29)
    assert cut is not None and cut.ids == [*range(5), *range(85, 110)] and sum(cut.learned) == 10


def test_a_source_keeps_its_closing_mark_and_a_target_loses_its_end() -> None:
    cut = cut_to(Rendered([5, 6, 7, 1], [True] * 4, [*range(10, 30), 1]), 3, source_marks=1)
    assert cut is not None and (cut.source, cut.ids, cut.is_cut) == ([10, 11, 1], [5, 6, 7], True)


def test_what_is_never_learned_is_dropped_and_said() -> None:
    assert cut_to(Rendered([1, 2], [False, False]), 8) is None
    assert cut_to(Rendered([1, 2], [True, False]), 8) is None, "nothing predicts the first id"
    left = Left([("a, row 1", "x"), ("a, row 4", "x"), ("b, row 2", "x"), ("b, row 3", "x")], 2)
    assert left.notes(9) == [
        "4 rows are left out, x: a, row 1; a, row 4; b, row 2 and 1 more",
        "2 examples were longer than a row of 9 tokens and are cut",
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(texts=["one two three four five six seven eight nine ten " * 20], vocab_size=300)


@pytest.fixture(scope="module")
def pieces(tokenizer: Tokenizer) -> InstructPieces:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    draw = random.Random(1)
    rows = [
        Sourced(
            conversation_of(" ".join(draw.choices(words, k=3)), " ".join(draw.choices(words, k=1 + n % 7))),
            f"row {n}",
        )
        for n in range(40)
    ]
    found = rendered_pieces(rows, Renderer(tokenizer, "decoder"), 64, Left())
    assert found is not None
    return found


def test_every_example_is_in_one_row_and_reads_as_it_was_rendered(pieces: InstructPieces) -> None:
    packed, alone = InstructRows(pieces, 64, 0), InstructRows(pieces, 64, 0, packing=False)
    assert len(packed) < len(alone) == len(pieces) == 40
    examples = [example for number in range(len(packed)) for example in packed.row(number)]
    for number, example in enumerate(examples):
        whole = pieces.rendered(number)
        assert example.ids.tolist() == whole.ids[:-1]
        expected = [t if learned else IGNORED for t, learned in zip(whole.ids, whole.learned, strict=True)][1:]
        assert example.targets.tolist() == expected
        assert [len(example.ids)] == pieces.rooms[number, 1:].tolist()
    assert sum(int((each.targets != IGNORED).sum()) for each in examples) == pieces.num_learned
    assert all(len(alone.row(number)) == 1 for number in range(len(alone)))
    width = int(pieces.rooms[:, 1].max())
    assert alone.worst_case([alone.row(0), alone.row(1)]).ids.shape == (2, width)


def test_the_end_is_learned_where_it_is_also_the_padding(pieces: InstructPieces, tokenizer: Tokenizer) -> None:
    """Padding is told by its segment, never by its id."""
    eos = tokenizer.id_of("<|im_end|>")
    rows = InstructRows(pieces, 64, 0, pad_id=eos, packing=False)
    batch = rows.collate([rows.row(number) for number in range(8)])
    assert int((batch.targets == eos).sum()) == 8
    assert batch.segments is not None and int((batch.ids[batch.segments == 0] == eos).sum()) > 0
    assert (batch.targets[batch.segments == 0] == IGNORED).all()


def test_a_packed_example_costs_what_it_costs_alone_whatever_stands_beside_it(pieces: InstructPieces) -> None:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=300, width=32, layers=2, heads=2, max_positions=64)
    model = build_model(config).double()
    initialise(model, config, 0)

    def loss_of(examples: list, learned: int) -> float:
        """The summed loss of example `learned` in a row of them all."""
        targets = [
            each.targets if n == learned else np.full_like(each.targets, IGNORED) for n, each in enumerate(examples)
        ]
        row = [replace(each, targets=target) for each, target in zip(examples, targets, strict=True)]
        with torch.no_grad():
            return float(TokenObjective().loss(model, collate_examples([row], 0)).sum)

    some = [pieces.example(number, draw_of(0)) for number in range(3)]
    changed = replace(some[0], ids=np.where(np.arange(len(some[0].ids)) == 2, 7, some[0].ids))
    for place in (1, 2):
        assert loss_of(some, place) == loss_of([changed, *some[1:]], place), "exactly"
        assert loss_of(some, place) == pytest.approx(loss_of([some[place]], 0), rel=1e-9)
    # Control: the same ids as one segment do see one another.
    joined = replace(
        some[0],
        ids=np.concatenate([some[0].ids, some[1].ids]),
        targets=np.concatenate([np.full_like(some[0].targets, IGNORED), some[1].targets]),
    )
    broken = replace(joined, ids=np.where(np.arange(len(joined.ids)) == 2, 7, joined.ids))
    assert loss_of([joined], 0) != loss_of([broken], 0)
