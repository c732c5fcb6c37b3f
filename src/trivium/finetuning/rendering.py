"""A conversation as ids, and which of them are learned: one way for training, evaluation and serving.

With a chat template, `tokenizer/chat.py` writes and cuts it. Without one, a row of a prompt and a response is the two
texts, one after the other: the prompt as `generate` reads one (`generation/prompts.py`), the response, and the
end-of-text token, which is learned; every other conversation is written in ChatML, which is then to be saved with the
model. ChatML's marks that are no tokens of the vocabulary are text like any other, but that the end-of-text token then
ends a turn. Where a template ends its answers with no special token, the end-of-text token is put after the last and
learned, so that a model can learn to stop.

An encoder-decoder reads what comes before a response as texts, a line each, and writes the response.

Functions: a template that knows of tools is given them, and `function_call` turns as `tool_calls`; where it does not,
the tools stand in the system message as JSON.

Invariants its tests check: the ids of a prompt are the first ids of the training row it became, for every kind of
tokenizer; they are what `generate` and `chat` read; one beginning-of-text token at most; the end of an answer is
learned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trivium.data.batch import IGNORED
from trivium.data.conversations import Conversation, Message
from trivium.data.rows import Text, Tokenized
from trivium.errors import UserError
from trivium.finetuning.task_settings import Learned
from trivium.generation.prompts import encode_prompt, encode_source
from trivium.generation.settings import GenerationSettings
from trivium.models.config import Kind
from trivium.tokenizer.bpe import Tokenizer
from trivium.tokenizer.chat import CHATML, ChatTemplate

Renderable = Conversation | Text | Tokenized

_PLAIN = GenerationSettings()
END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class Rendered:
    """One thing to learn."""

    ids: list[int]
    """The whole of a decoder's text; an encoder-decoder's target."""
    learned: list[bool]
    """Which of `ids` are learned."""
    source: list[int] | None = None
    """What the encoder of an encoder-decoder reads."""
    is_cut: bool = False
    """Whether some of it was left out, since it was too long."""


@dataclass(frozen=True)
class Question:
    """A conversation up to its last answer."""

    prompt: list[int]
    """What the model reads: a decoder's prompt, an encoder-decoder's source."""
    text: str
    """What was asked last, for people."""
    answer: str
    """The last answer."""


def chatml_for(tokenizer: Tokenizer) -> str:
    """ChatML, begun as the tokenizer begins its texts.

    Where `<|im_end|>` is no token of the vocabulary, the end-of-text token ends a turn in its place.
    """
    start = "{{- bos_token -}}\n" if tokenizer.adds_bos and tokenizer.bos_token else ""
    is_known = END_OF_TURN in tokenizer.special_tokens or tokenizer.eos_token is None
    return start + (CHATML if is_known else CHATML.replace(END_OF_TURN, "{{ eos_token }}"))


@dataclass(frozen=True)
class Renderer:
    """How conversations are written for one model."""

    tokenizer: Tokenizer
    """Without a chat template: as said above."""
    kind: Kind
    """Decoder or encoder-decoder."""
    learn: Learned = "responses"
    system: str | None = None
    """A system message for conversations that have none."""

    def render(self, row: Renderable) -> list[Rendered]:
        """What is learned of one row; nothing where no token is. UserError says what cannot be rendered, not where."""
        if isinstance(row, Tokenized):
            return _tokenized(row, self.kind)
        if self.kind == "encoder-decoder":
            return self._pairs(row)
        if isinstance(row, Text):
            return [self._document(row.text)]
        if self.is_plain(row):
            return [self._plain(row)]
        return [self._chat(row)]

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, is_plain: bool = False
    ) -> list[int]:
        """What the model reads to answer `messages`; `is_plain`: a single text, without a template where there is
        none."""
        row = Conversation(tuple(messages), tuple(tools))
        if self.kind == "encoder-decoder":
            return self._source(self._messages(row))
        if is_plain and not self.has_template and len(messages) == 1 and not tools:
            return encode_prompt(self.tokenizer, messages[0].content, _PLAIN)
        return self.template.encode(self._messages(row), add_generation_prompt=True, tools=self._tools(row)).ids

    def question(self, row: Renderable) -> Question | None:
        """The last answer of a conversation and what the model reads to give it; None where there is none."""
        if not isinstance(row, Conversation):
            return None
        answers = [number for number, message in enumerate(row.messages) if message.role == "assistant"]
        if not answers or answers[-1] == 0:
            return None
        before, answer = row.messages[: answers[-1]], self._turn(row.messages[answers[-1]])
        prompt = self.prompt(before, row.tools, is_plain=self.is_plain(row))
        return Question(prompt, before[-1].content, str(answer["content"]))

    @property
    def ends(self) -> list[int]:
        """The ids that end an answer."""
        ends = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        if self.kind == "decoder" and self.template.end_of_turn_id is not None:
            ends.append(self.template.end_of_turn_id)
        return ends

    @cached_property
    def source_ends(self) -> list[int]:
        """The ids that end every source of an encoder-decoder."""
        some = self.tokenizer.vocab_size
        return self.tokenizer.wrap([some])[0][self.tokenizer.wrap([some])[0].index(some) + 1 :]

    @property
    def has_template(self) -> bool:
        """Whether every conversation is written by a template."""
        return self.tokenizer.chat_template is not None or self.system is not None

    def is_plain(self, row: Renderable) -> bool:
        """Whether a row is written without a template."""
        if not isinstance(row, Conversation):
            return True
        roles = [message.role for message in row.messages]
        return row.is_plain and not self.has_template and not row.tools and roles == ["user", "assistant"]

    @cached_property
    def template(self) -> ChatTemplate:
        """The tokenizer's own, or ChatML."""
        return self.tokenizer.chat or ChatTemplate(chatml_for(self.tokenizer), self.tokenizer)

    # ------------------------------------------------------------------------------------------ decoders

    def _document(self, text: str) -> Rendered:
        start = encode_prompt(self.tokenizer, "", _PLAIN) if self.tokenizer.adds_bos else []
        ids = [*start, *self.tokenizer.encode(text), *self._end()]
        return Rendered(ids, [False] * len(start) + [True] * (len(ids) - len(start)))

    def _plain(self, row: Conversation) -> Rendered:
        asked, answer = row.messages[0].content, row.messages[1].content
        prompt = encode_prompt(self.tokenizer, asked, _PLAIN)
        response = [*self.tokenizer.encode(answer, after=asked[-1:]), *self._end()]
        learned = row.messages[1].train is not False
        return Rendered([*prompt, *response], [self.learn == "all"] * len(prompt) + [learned] * len(response))

    def _end(self) -> list[int]:
        if self.tokenizer.eos_id is None:
            raise UserError("the tokenizer has no end-of-text token, so the end of an answer could not be learned")
        return [self.tokenizer.eos_id]

    def _chat(self, row: Conversation) -> Rendered:
        said, tools = self._messages(row), self._tools(row)
        which = "last" if self.learn == "last_response" else "all"
        ids, learned = self.template.encode(said, tools=tools, train=which)  # type: ignore[arg-type]
        ends_in_answer = said[-1]["role"] == "assistant"
        end = self.tokenizer.eos_id
        if self.template.end_of_turn_id is None and end is not None and ends_in_answer and ids[-1:] != [end]:
            ids, learned = [*ids, end], [*learned, bool(learned and learned[-1])]
        if self.learn == "all":
            learned = self._all_but(said, tools, learned)
        return Rendered(ids, learned)

    def _all_but(self, said: list[dict[str, Any]], tools: Any, answers: list[bool]) -> list[bool]:
        """Every id but those of answers that are not to be learned."""
        left_out = [message for message in said if message.get("train") is False]
        if not left_out:
            return [True] * len(answers)
        if any(message["role"] != "assistant" for message in left_out):
            raise UserError(
                "with task.learn=all only answers can be left out by train: false; leave it off other messages, or set "
                "task.learn=responses"
            )
        whole = self.template.encode([{**message, "train": None} for message in said], tools=tools).learned
        whole = [*whole, *answers[len(whole) :]]
        return [kept or not answer for kept, answer in zip(answers, whole, strict=True)]

    def _tools(self, row: Conversation) -> list[Mapping[str, Any]] | None:
        return list(row.tools) if row.tools and "tools" in self.template.source else None

    def _messages(self, row: Conversation) -> list[dict[str, Any]]:
        """The turns as the template is given them."""
        said = [self._turn(message) for message in row.messages]
        if self.system is not None and (not said or said[0]["role"] != "system"):
            said.insert(0, {"role": "system", "content": self.system})
        if row.tools and (self.kind != "decoder" or self._tools(row) is None):
            listing = "\n".join(["Functions:", *(json.dumps(tool, ensure_ascii=False) for tool in row.tools)])
            if said and said[0]["role"] == "system":
                said[0] = {**said[0], "content": f"{said[0]['content']}\n\n{listing}"}
            else:
                said.insert(0, {"role": "system", "content": listing})
        return said

    def _turn(self, message: Message) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": message.role, "content": message.content, **message.further}
        if message.train is not None:
            turn["train"] = message.train
        calls = message.further.get("tool_calls")
        if calls and (self.kind != "decoder" or "tool_calls" not in self.template.source):
            said = [call.get("function", call) for call in calls]
            listing = json.dumps(said[0] if len(said) == 1 else said, ensure_ascii=False)
            turn["content"] = "\n".join(filter(None, [message.content, listing]))
            del turn["tool_calls"]
        return turn

    # ------------------------------------------------------------------------------------------ encoder-decoders

    def _pairs(self, row: Conversation | Text) -> list[Rendered]:
        """Each learned answer as a target, what was said before it as its source."""
        if isinstance(row, Text):
            raise UserError("a text alone has no source: give rows of {prompt, response} or {source, target}")
        if self.learn == "all":
            raise UserError("task.learn=all is for decoders: an encoder-decoder writes its answers only")
        said = self._messages(row)
        answers = [number for number, turn in enumerate(said) if turn["role"] == "assistant" and number]
        chosen = answers if self.learn == "responses" else answers[-1:]
        return [
            self._pair(said[:number], said[number]["content"])
            for number in answers
            if said[number].get("train", number in chosen)
        ]

    def _pair(self, before: Sequence[Mapping[str, Any]], answer: str) -> Rendered:
        target = self.tokenizer.wrap(self.tokenizer.encode(answer))[0]
        return Rendered(target, [True] * len(target), self._source(before))

    def _source(self, before: Sequence[Mapping[str, Any]]) -> list[int]:
        return encode_source(self.tokenizer, "\n".join(str(turn["content"]) for turn in before))


def _tokenized(row: Tokenized, kind: Kind) -> list[Rendered]:
    """Ids from elsewhere. UserError where a decoder's labels are other ids than those they stand beside."""
    ids, labels = list(row.input_ids), list(row.labels)
    if kind == "encoder-decoder":
        target = [label for label in labels if label != IGNORED]
        return [Rendered(target, [True] * len(target), ids)] if target else []
    if len(ids) != len(labels):
        raise UserError(f"'input_ids' has {len(ids)} entries and 'labels' {len(labels)}: they must go side by side")
    learned = [label != IGNORED for label in labels]
    wrong = next((place for place, label in enumerate(labels) if learned[place] and label != ids[place]), None)
    if wrong is not None:
        raise UserError(
            f"label {wrong + 1} is {labels[wrong]} and the id beside it {ids[wrong]}: a label is its own id, or "
            f"{IGNORED}"
        )
    return [Rendered(ids, learned)]
