"""Conversations to text, to ids, and to which of those ids are learned.

A chat template (Jinja, run by `sandbox.py`) writes a conversation as text. Training, evaluation and serving all go
through this one class, so that the model is asked exactly as it was taught.

**What is learned** is derived by rendering prefixes, never from marks in the template: the text before answer i is
`render(messages[:i], add_generation_prompt=True)`, the text up to its end `render(messages[:i + 1])`, and both must be
beginnings of the whole (special tokens that a template writes at the very end of a conversation only may be missing).
What lies between is the answer. It is learned to the end of its turn: special tokens with nothing but white space and
special tokens after them, the first of these that stand together; without such tokens, all of it. A template for which
this fails (one that rewrites earlier answers, say) is refused with the message that shows it.

**Ids.** The text is cut where answers begin and end and each piece is encoded alone, in training and in serving alike:
the ids of a prompt are the first ids of the training row it became (tested). A tokenizer that puts a space before a
text does so where the whole text would have it, not before each piece.

**Special tokens** are those the template writes. A special token's text inside what people wrote stays text: before
rendering, each occurrence (in contents also a part of one at an edge, which the template's own words might complete)
is marked by a character that occurs nowhere else, and the text is cut at the marks that fall inside a special token.
Rule for templates that change content: trimming, splitting, joining and changing case keep the marks; if a template
looks at the content so that the marked conversation is written differently from the plain one, that row is refused.
Roles are not marked, since they come from a fixed list.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal, NamedTuple, Protocol

from trivium.errors import UserError
from trivium.tokenizer.messages import Message, learned_messages, plain_messages, plain_tools

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
"""The default template: ChatML."""

_FREE_TEXT = ("content", "text", "reasoning_content", "reasoning", "thinking")
"""Keys whose texts are also marked at their edges."""


class ChatTokenizer(Protocol):
    """What a template needs of its tokenizer."""

    special_tokens: Mapping[str, int]

    @property
    def bos_token(self) -> str | None:
        """Begins a text."""
        ...

    @property
    def eos_token(self) -> str | None:
        """Ends a text."""
        ...

    @property
    def pad_token(self) -> str | None:
        """Fills up a row."""
        ...

    def encode(self, text: str, *, parse_special: bool = False, after: str = "") -> list[int]:
        """Ids of `text`, which goes on from the text `after` or stands alone."""
        ...


class ChatIds(NamedTuple):
    """A conversation as ids."""

    ids: list[int]
    """The ids, T of them."""
    learned: list[bool]
    """T values: whether each id is one that the model should learn to produce."""


class ChatTemplate:
    """A template and the tokenizer it writes for."""

    def __init__(self, source: str, tokenizer: ChatTokenizer) -> None:
        """Compile `source` (Jinja). Raises UserError when it is too long or not a template."""
        from trivium.tokenizer.sandbox import LONGEST_SOURCE, TemplateEnvironment, run_metered  # Jinja comes with it

        if len(source) > LONGEST_SOURCE:
            raise UserError(f"the chat template is longer than {LONGEST_SOURCE:,} characters")
        if any(len(token) < 2 for token in tokenizer.special_tokens):
            raise UserError("a special token of one character cannot be told from text, so chat is not possible")
        self.source = source
        self._tokenizer = tokenizer
        names = {
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
        }
        self._names = {name: token for name, token in names.items() if token is not None}
        self._run_metered = run_metered
        environment = TemplateEnvironment()
        self._template = run_metered(lambda: environment.from_string(environment.metered(source)), "be compiled")
        longest_first = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._heads = {token[:n] for token in longest_first for n in range(1, len(token))}
        self._tails = {token[n:] for token in longest_first for n in range(1, len(token))}

    # ------------------------------------------------------------------------------------------ text

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as text; with `add_generation_prompt`, ready for the assistant to speak.

        A message is {"role": one of ROLES, "content": text}; further keys (`tool_calls`, `name`, ...) go to the
        template as they are. Raises UserError naming the message that is wrong (messages are counted from 1).
        """
        return self._render(plain_messages(messages), add_generation_prompt, plain_tools(tools))

    def _render(self, messages: Sequence[Message], prompt: bool, tools: Sequence[Any], place: str = "") -> str:
        return self._run_metered(
            lambda: self._template.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=prompt,
                **self._names,
            ),
            f"write this conversation{place}",
        )

    # ------------------------------------------------------------------------------------------ ids

    def encode(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        train: Literal["all", "last"] = "all",
    ) -> ChatIds:
        """Ids of the conversation and which of them are learned.

        Learned are the assistant's answers: all of them, or the last one. A message's own `"train": false` (or true)
        overrides this. With `add_generation_prompt` the ids are the prompt to generate from: nothing in it is learned.
        """
        plain, tools = plain_messages(messages), plain_tools(tools)
        flags = learned_messages(messages, plain, train)
        if add_generation_prompt:
            flags = [False] * len(plain)
        text = self._render(plain, add_generation_prompt, tools)
        special, cuts = self._special_spans(text, self._marks(plain, tools, add_generation_prompt, text))
        answers: list[tuple[int, int]] = []
        for number, message in enumerate(plain):
            if message["role"] != "assistant":
                continue
            try:
                start, end = self._answer(plain, number, text, tools, special)
            except UserError:
                if flags[number]:
                    raise
                continue  # not learned, and the template writes it in its own way: nothing to cut
            cuts |= {start, end}
            if flags[number]:
                answers.append((start, end))
        return self._encode_pieces(text, special, cuts, answers)

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The id that ends an answer, where generation must stop; None when it is not known or no special token."""
        try:
            ids, learned = self.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        except UserError:  # a template for other kinds of conversation
            return None
        last = [token_id for token_id, is_learned in zip(ids, learned, strict=True) if is_learned][-1]
        return last if last in self._tokenizer.special_tokens.values() else None

    @cached_property
    def _ignores_the_prompt_flag(self) -> bool:
        question = [{"role": "user", "content": "a"}]
        try:
            return self._render(question, True, ()) == self._render(question, False, ())
        except UserError:
            return False

    def _answer(
        self,
        messages: Sequence[Message],
        number: int,
        text: str,
        tools: Sequence[Any],
        special: Sequence[tuple[int, int]],
    ) -> tuple[int, int]:
        """Where answer `number` (from 0) begins and where its turn ends in `text`; UserError when that is unknown."""
        place = f" up to message {number + 1}"
        before = self._render(messages[:number], True, tools, place)
        through = self._render(messages[: number + 1], False, tools, place)
        refusal = f"message {number + 1} (assistant) cannot be learned: the chat template "
        start = len(before)
        if not text.startswith(before):
            odd = before[_shared(before, text) :][:40]
            raise UserError(
                f"{refusal}asks for the answer with {odd!r}, but does not write it so: begin the answer with that, "
                'set "train": false on it, learn the last answer only, or use another template'
            )
        shared = _shared(through, text)
        inside = [(a, b) for a, b in special if start <= a and b <= shared]
        if shared < len(through):  # fine if only closing tokens of the conversation are missing
            shared = inside[-1][1] if inside else start
            if shared == start or self._special.sub("", through[shared:]).strip():
                raise UserError(
                    f'{refusal}writes it differently once more messages follow: set "train": false on it, learn the '
                    "last answer only, or use another template"
                )
        if self._ignores_the_prompt_flag and len(inside) > 1 and before.endswith(text[inside[-2][0] : shared]):
            raise UserError(
                f"{refusal}asks for the next answer whether or not it should (add_generation_prompt), so that the end "
                "of an answer cannot be told: use another template"
            )
        is_blank = not (messages[number].get("content") or "").strip()
        return start, _end_of_turn(text, shared, inside, is_blank)

    def _encode_pieces(
        self,
        text: str,
        special: Sequence[tuple[int, int]],
        cuts: set[int],
        answers: Sequence[tuple[int, int]],
    ) -> ChatIds:
        starts, ends = [start for start, _ in special], {end: start for start, end in special}
        # A tokenizer that puts a space before a text puts it where the whole would have it: nowhere after other text,
        # and after a special token if that is its way.
        cuts = cuts | {0, len(text)}
        opening, following = set(starts), [*starts, len(text)]
        cuts |= {following[bisect_left(starts, cut)] for cut in cuts}
        ids: list[int] = []
        learned: list[bool] = []
        for start, end in pairwise(sorted(cuts)):
            if start and start in ends:  # `[1:]`: without that special token itself
                piece = self._tokenizer.encode(text[ends[start] : end], parse_special=True)[1:]
            elif start == 0 or start in opening:
                piece = self._tokenizer.encode(text[start:end], parse_special=True)
            else:
                piece = self._tokenizer.encode(text[start:end], after=text[start - 1])
            ids += piece
            learned += [any(a <= start and end <= b for a, b in answers)] * len(piece)
        return ChatIds(ids, learned)

    # ------------------------------------------------------------------------------------------ whose special token

    def _marks(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any],
        prompt: bool,
        text: str,
    ) -> list[int]:
        """Places in `text` that lie inside people's own words, wherever those look like (part of) a special token."""
        mark = _unused_character(self.source + text)

        def with_marks(string: str, edges: bool) -> str:
            places = [0, *self._suspect_places(string, edges), len(string)]
            return mark.join(string[a:b] for a, b in pairwise(places))

        def marked(value: Any, key: str = "") -> Any:
            if isinstance(value, str):
                return value if key == "role" else with_marks(value, edges=key in _FREE_TEXT)
            if isinstance(value, dict):
                return {with_marks(name, edges=False): marked(item, name) for name, item in value.items()}
            return [marked(item) for item in value] if isinstance(value, list) else value

        marked_messages, marked_tools = marked(messages), marked(tools)
        if marked_messages == messages and marked_tools == tools:
            return []
        pieces = self._render(marked_messages, prompt, marked_tools).split(mark)
        if "".join(pieces) != text:
            raise UserError(
                "a message holds the text of a special token, and the chat template looks at that text in a way that "
                "does not allow telling the two apart: remove it from the message"
            )
        return list(accumulate(map(len, pieces[:-1])))

    def _suspect_places(self, string: str, edges: bool) -> list[int]:
        """Where to mark: inside each special token in `string`, and (`edges`) at edges that are part of one."""
        places = set()
        for token in self._tokenizer.special_tokens:
            start = string.find(token)
            while start >= 0:
                places.add(start + 1)
                start = string.find(token, start + 1)
        if not edges:
            return sorted(places)
        core = string.strip()
        begin = len(string) - len(string.lstrip())
        longest = max(map(len, self._heads), default=0)
        if any(core[-n:] in self._heads for n in range(1, longest + 1)):
            places.add(begin + len(core))
        is_inner = 0 < len(core) <= longest and any(core in tail for tail in self._tails)
        if is_inner or any(core[:n] in self._tails for n in range(1, longest + 1)):
            places.add(begin)
        return sorted(places)

    def _special_spans(self, text: str, marks: list[int]) -> tuple[list[tuple[int, int]], set[int]]:
        """(start, end) of each special token that the template wrote; and cuts that keep all others text."""
        spans, cuts, position = [], set(), 0
        while found := self._special.search(text, position):
            start, end = found.span()
            first = bisect_right(marks, start)
            if first < len(marks) and marks[first] < end:
                cuts.add(marks[first])
                position = start + 1
            else:
                spans.append((start, end))
                position = end
        return spans, cuts


def _end_of_turn(text: str, end: int, inside: Sequence[tuple[int, int]], is_blank: bool) -> int:
    """Where learning ends in an answer that ends at `end` and holds the template's special tokens `inside`."""
    closing: list[tuple[int, int]] = []  # those with nothing but white space and special tokens after them
    border = end
    for start, stop in reversed(inside):
        if text[stop:border].strip():
            break
        closing.insert(0, (start, stop))
        border = start
    if not closing:
        return end
    if is_blank:  # then what comes before a blank answer would seem to close it
        return closing[-1][1]
    first = closing[0]
    for following in closing[1:]:
        if following[0] != first[1]:
            break
        first = following
    return first[1]


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginnings."""
    if other.startswith(one):
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def _unused_character(text: str) -> str:
    """A private-use character that `text` does not hold."""
    used = set(text)
    return next(character for character in map(chr, range(0xE000, 0xF900)) if character not in used)
