"""Held-out rows as the model itself answers them: scores of what it writes, and some of it to read.

Answers are the likeliest token after another. ROUGE (F measures), exact match, token F1 and accuracy are between 0 and
1, BLEU between 0 and 100, each over the answers of all sources together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trivium.data.conversations import Message
from trivium.errors import UserError
from trivium.finetuning.head_tasks import shortened
from trivium.finetuning.pieces import Sourced, prompt_places
from trivium.finetuning.prepared import ShouldStop
from trivium.finetuning.rendering import Question, Renderer
from trivium.finetuning.task_settings import GeneratedScore
from trivium.generation.generate import generate
from trivium.generation.settings import GenerationSettings
from trivium.metrics.answers import exact_match, label_accuracy, token_f1
from trivium.metrics.bleu import bleu
from trivium.metrics.rouge import rouge
from trivium.models.build import Model
from trivium.models.decoder import Decoder
from trivium.models.encoder_decoder import EncoderDecoder
from trivium.progress import Progress
from trivium.runtime import give_back_freed_memory
from trivium.training.evaluate import EvaluationInterrupted

# Answers written together; between two such groups a run can be ended.
ANSWERS_AT_ONCE = 32

Score = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]


def _rouge(said: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    found = rouge(said, right)
    return {name: found[name]["fmeasure"] for name in ("rouge1", "rouge2", "rougeL")}


SCORES: dict[GeneratedScore, Score] = {
    "rouge": _rouge,
    "bleu": lambda said, right: {"bleu": float(bleu(said, right)["bleu"])},
    "exact_match": lambda said, right: {"exact_match": exact_match(said, right)},
    "accuracy": lambda said, right: {"accuracy": label_accuracy(said, right)},
    "token_f1": lambda said, right: {"token_f1": token_f1(said, right)},
}


@dataclass(frozen=True)
class Written:
    """What is asked at each evaluation, and what is shown."""

    renderer: Renderer
    scores: Sequence[Score]
    measured: Sequence[Question]
    """Those whose answers are scored."""
    shown: Sequence[Question]
    """Those to read."""
    max_new_tokens: int
    sample_tokens: int
    longest_prompt: int
    """Prompts that are longer lose their middle, as in training."""
    num_beams: int = 1
    """For what is shown."""

    def measure(self, model: Model, should_stop: ShouldStop, progress: Progress) -> Mapping[str, float]:
        """Each score; raises EvaluationInterrupted once `should_stop()` is true."""
        settings = GenerationSettings(max_new_tokens=self.max_new_tokens, temperature=0.0)
        said = self.answers(model, self.measured, settings, "writing answers to held-out rows", should_stop, progress)
        right = [question.answer for question in self.measured]
        return {name: value for score in self.scores for name, value in score(said, right).items()}

    def samples(self, model: Model, progress: Progress) -> list[dict[str, Any]]:
        """What the model writes beside what would have been right."""
        settings = GenerationSettings(max_new_tokens=self.sample_tokens, temperature=0.0, num_beams=self.num_beams)
        said = self.answers(model, self.shown, settings, "writing samples", lambda: False, progress)
        return [
            {"prompt": shortened(question.text), "text": text, "truth": question.answer}
            for question, text in zip(self.shown, said, strict=True)
        ]

    def answers(
        self,
        model: Model,
        questions: Sequence[Question],
        settings: GenerationSettings,
        description: str,
        should_stop: ShouldStop,
        progress: Progress,
    ) -> list[str]:
        """What the model writes to each question, without white space around it."""
        assert isinstance(model, Decoder | EncoderDecoder)
        texts: list[str] = []
        progress.start(description, total=len(questions), unit="texts")
        for start in range(0, len(questions), ANSWERS_AT_ONCE):
            if should_stop():
                raise EvaluationInterrupted
            some = [self._read(question.prompt) for question in questions[start : start + ANSWERS_AT_ONCE]]
            found = generate(model, self.renderer.tokenizer, some, settings, eos_ids=self.renderer.ends)
            texts += [each.text.strip() for each in found]
            progress.advance(len(some))
            give_back_freed_memory()  # texts of other lengths leave holes that training cannot use
        progress.finish()
        return texts

    def _read(self, prompt: Sequence[int]) -> list[int]:
        return [prompt[place] for place in prompt_places(len(prompt), self.longest_prompt)]


def questions_of(rows: Sequence[Sourced], renderer: Renderer, numbers: Sequence[int]) -> list[Question]:
    """The questions of some rows; those without an answer have none. UserErrors name the row."""
    found = []
    for number in numbers:
        try:
            question = renderer.question(rows[number].row)
        except UserError as error:
            raise UserError(f"{rows[number].where}: {error}") from None
        if question is not None:
            found.append(question)
    return found


def stated_questions(prompts: Sequence[str], renderer: Renderer, *, is_plain: bool) -> list[Question]:
    """The prompts of a recipe, to which no answer is known."""
    return [Question(renderer.prompt([Message("user", text)], is_plain=is_plain), text, "") for text in prompts]
