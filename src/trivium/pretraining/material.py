"""What a run learns from: its text or pairs, tokenized, and the batches that the objective makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trivium.data.examples import ExampleRows, PairPieces
from trivium.data.marks import Marks, marks_of, refuse_missing_marks
from trivium.data.objectives_settings import CausalSettings, PairsSettings
from trivium.data.pairs import PairShards, PreparedPairs, prepare_pairs, training_pair_texts
from trivium.data.prepare import Prepared, prepare, training_texts
from trivium.data.shards import Shards
from trivium.data.sources import EvaluationRows, PackedSource, evaluation_rows, training_source
from trivium.errors import UserError
from trivium.pretraining.recipe import PretrainRecipe
from trivium.progress import Progress
from trivium.runtime import Runtime
from trivium.tokenizer.bpe import Tokenizer


def tokenizer_texts(recipe: PretrainRecipe) -> Iterator[str]:
    """What the run's tokenizer is learned from: the text that is trained on, of pairs both sides."""
    if isinstance(recipe.objective, PairsSettings):
        return training_pair_texts(recipe.data, recipe.objective.languages)
    return training_texts(recipe.data)


@dataclass(frozen=True)
class Material:
    """Tokenized text or pairs of one recipe."""

    recipe: PretrainRecipe
    tokenizer: Tokenizer
    prepared: Prepared | PreparedPairs

    @property
    def num_tokens(self) -> int:
        """Training tokens, the ends of documents included; of pairs those of both sides."""
        return sum(shards.num_tokens for shards, _ in self.prepared.train)

    @property
    def held_out(self) -> Shards | PairShards | None:
        """What is never trained on."""
        return self.prepared.held_out

    @cached_property
    def marks(self) -> Marks | None:
        """What tasks must know of the tokenizer; next-token learning needs none."""
        if isinstance(self.recipe.objective, CausalSettings):
            return None
        return marks_of(self.tokenizer, self.recipe.objective, self.recipe.model.decoder_start_id)

    def training_source(self, runtime: Runtime) -> PackedSource:
        """The batches of this process."""
        return training_source(self.prepared, self.recipe.data, seed=self.recipe.seed, **self._how(runtime))

    def evaluation_rows(self, runtime: Runtime, *, all_rows: bool = False) -> EvaluationRows | None:
        """The held-out batches of this process; None where nothing is held out."""
        return evaluation_rows(self.prepared, self.recipe.data, all_rows=all_rows, **self._how(runtime))

    def _how(self, runtime: Runtime) -> dict[str, Any]:
        return {
            "objective": self.recipe.objective,
            "kind": self.recipe.model.kind,
            "marks": self.marks,
            "rank": runtime.rank,
            "world_size": runtime.world_size,
        }


def prepare_material(recipe: PretrainRecipe, tokenizer: Tokenizer, progress: Progress) -> Material:
    """Tokenize what `recipe` names, or find it tokenized."""
    if isinstance(recipe.objective, PairsSettings):
        found: Prepared | PreparedPairs = prepare_pairs(
            recipe.data, recipe.objective.languages, tokenizer, progress=progress
        )
    else:
        found = prepare(recipe.data, tokenizer, progress=progress)
    return Material(recipe, tokenizer, found)


def refuse_tokenizer(recipe: PretrainRecipe, tokenizer: Tokenizer) -> None:
    """UserError when the model has fewer ids than the tokenizer, or the objective needs a token it lacks."""
    if tokenizer.vocab_size > recipe.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {recipe.model.vocab_size}, but the tokenizer has {tokenizer.vocab_size} entries; "
            f"set model.vocab_size={tokenizer.vocab_size} or leave it out"
        )
    if not isinstance(recipe.objective, CausalSettings):
        marks = marks_of(tokenizer, recipe.objective, recipe.model.decoder_start_id)
        refuse_missing_marks(recipe.objective, recipe.model.kind, marks)


def num_cut_pairs(source: PackedSource) -> int:
    """How many training pairs are longer than a row and lose their ends."""
    pieces = [rows.pieces for rows in source.sources if isinstance(rows, ExampleRows)]
    return sum(each.num_cut for each in pieces if isinstance(each, PairPieces))


def spread(count: int, of: int) -> Sequence[int]:
    """`count` numbers below `of` (all of them where it is smaller), spread evenly."""
    taken = min(count, of)
    return [number * of // taken for number in range(taken)]
