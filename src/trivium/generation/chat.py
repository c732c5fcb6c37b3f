"""A conversation with a decoder that was tuned to have one: turns in, answers out.

The model's chat template writes the conversation; an answer ends where the template ends a turn. When the conversation
grows beyond the context, the oldest turns are forgotten, a question together with its answer, so that an answer always
has room; the system message stays.

Invariant its test checks: each answer is what `generate` makes of the template's ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trivium.errors import UserError
from trivium.generation.generate import Generation, generate
from trivium.generation.purposes import refuse_unless
from trivium.generation.settings import GenerationSettings
from trivium.models.build import Model
from trivium.models.decoder import Decoder
from trivium.tokenizer.chat import ChatTemplate

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

Message = dict[str, str]

# Share of the context that is kept free for an answer, unless fewer tokens are asked for.
SHARE_FOR_ANSWER = 4


class Chat:
    """The conversation so far, and the model that answers."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        settings: GenerationSettings | None = None,
        *,
        system: str | None = None,
        eos_ids: Sequence[int] | None = None,
    ) -> None:
        """An empty conversation, led by the system message `system`.

        Raises UserError when the model is no causal language model or has no chat template.
        """
        refuse_unless(model.config, "chat", ["decoder"])
        assert isinstance(model, Decoder)  # by its kind
        self.template = template_of(tokenizer)
        self.model, self.tokenizer, self.settings = model, tokenizer, settings or GenerationSettings()
        self.system = system
        self.turns: list[Message] = []
        """Questions and answers in turn."""
        default = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        end_of_turn = self.template.end_of_turn_id
        self._ends = [*(eos_ids or default), *([] if end_of_turn is None else [end_of_turn])]

    @property
    def messages(self) -> list[Message]:
        """The conversation as the template is given it."""
        return [*([] if self.system is None else [{"role": "system", "content": self.system}]), *self.turns]

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns = []

    def say(self, text: str, stream: Callable[[str], None] | None = None) -> Generation:
        """Say `text` and get the answer, which `stream` gets piece by piece. The conversation keeps both.

        Raises UserError when the text alone leaves no room for an answer; the conversation is then as it was.
        """
        before = self.turns
        self.turns = [*before, {"role": "user", "content": text}]
        try:
            (answer,) = generate(
                self.model,
                self.tokenizer,
                [self._prompt()],
                self.settings,
                stream=None if stream is None else lambda _, piece: stream(piece),
                eos_ids=self._ends,
            )
        except UserError:
            self.turns = before
            raise
        self.turns = [*self.turns, {"role": "assistant", "content": answer.text}]
        return answer

    def _prompt(self) -> list[int]:
        """The conversation's ids; turns that no longer fit are forgotten, the oldest first."""
        context = self.model.config.max_positions
        room = min(self.settings.max_new_tokens, context // SHARE_FOR_ANSWER)
        while True:
            ids = self.template.encode(self.messages, add_generation_prompt=True).ids
            if len(ids) + room <= context or len(self.turns) < 3:
                return ids
            self.turns = self.turns[2:]


def template_of(tokenizer: Tokenizer) -> ChatTemplate:
    """The tokenizer's chat template. UserError when it has none."""
    if tokenizer.chat is None:
        raise UserError(
            "the model has no chat template, so it does not know what a conversation looks like: use trivium generate, "
            "or a model that was tuned to chat"
        )
    return tokenizer.chat
