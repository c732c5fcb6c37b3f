"""What a fine-tuned model is to do: one settings class for each task (read by `--help`, so no torch here).

`task.name` chooses the class; its other keys are that class's fields. Every task can be done by text, by decoders and
encoder-decoders: what is to be found out is written. Classes, numbers, tags and spans can also be told by a head.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from trivium.config import Settings, chosen_by, tag_of

TaskName = Literal["instruct", "classify", "regress", "tag", "answer", "seq2seq"]
By = Literal["auto", "head", "text"]
Learned = Literal["responses", "last_response", "all"]
GeneratedScore = Literal["rouge", "bleu", "exact_match", "accuracy", "token_f1"]


class _Task(Settings):
    """What all tasks have in common."""

    generated_rows: int = Field(default=64, ge=0)
    """So many held-out rows, spread evenly, are also answered in the model's own words at each evaluation and scored
    (tasks by text); 0: none."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Most tokens written for each of them."""


class InstructSettings(_Task):
    """Answer what is asked (decoder, encoder-decoder)."""

    name: Literal["instruct"] = "instruct"
    """What is learned: to answer (`instruct`), to tell classes (`classify`), a number (`regress`), the class of each
    word (`tag`), where in a text the answer to a question stands (`answer`), or to turn a text into another
    (`seq2seq`: a summary, a translation)."""
    learn: Learned = "responses"
    """Which tokens are learned: those of all responses, of the last one, or all of the conversation. A message's own
    `train: false` takes it out."""
    system: str | None = None
    """A system message for rows that have none; null: none is added."""
    chat_template: str | None = None
    """A Jinja file to write conversations with; null: the model's own template, or where it has none, ChatML for rows
    of messages and the plain texts, one after the other, for rows of a prompt and a response."""
    scores: tuple[GeneratedScore, ...] = ("rouge",)
    """How generated answers are scored."""


class ClassifySettings(_Task):
    """Tell the class of a text or of a pair of texts."""

    name: Literal["classify"] = "classify"
    """Rows of {text, label}, or of {text, pair, label}."""
    by: By = "auto"
    """With a `head`, or by writing the label as `text`; `auto`: encoders with a head, the others by text."""
    labels: tuple[str, ...] = ()
    """The classes, in the order of their numbers; empty: those of the training rows, sorted."""
    instruction: str = ""
    """By text: what is said before the text; empty: the classes are named."""


class RegressSettings(_Task):
    """Tell a number of a text or of a pair of texts."""

    name: Literal["regress"] = "regress"
    """Rows of {text, label} or {text, pair, label} whose label is a number; learned with a head, by squared error."""


class TagSettings(_Task):
    """Tell the class of each word: named entities."""

    name: Literal["tag"] = "tag"
    """Files in the columns of CoNLL (.conll, .txt, .bio), or rows of {tokens, tags}."""
    by: By = "auto"
    """With a `head`, or by writing the entities as `text`; `auto`: encoders with a head, the others by text."""
    labels: tuple[str, ...] = ()
    """The tags, in the order of their numbers; empty: those of the training rows, sorted, `O` first."""


class AnswerSettings(_Task):
    """Find the answer to a question in a text."""

    name: Literal["answer"] = "answer"
    """SQuAD's json, or rows of {question, context, answers}."""
    by: By = "auto"
    """With a `head` for its two ends, or by writing it as `text`; `auto`: encoders with a head, the others by text."""
    stride: int = Field(default=128, ge=1)
    """A context that is too long is read in pieces, each begun so many tokens after the one before."""
    max_answer_tokens: int = Field(default=30, ge=1)
    """Longer answers are not given (with a head)."""


class Seq2SeqSettings(_Task):
    """Turn a text into another: summarise, translate."""

    name: Literal["seq2seq"] = "seq2seq"
    """Rows of {source, target} or {prompt, response}, or parallel texts."""
    languages: tuple[str, str] | None = None
    """Endings of parallel text files, such as [en, de]; null: `data.train` names files of rows."""
    instruction: str = ""
    """What is said before each source; T5 was taught with words such as `summarize: `."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread over all tokens."""
    scores: tuple[GeneratedScore, ...] = ("rouge", "bleu")
    """How what is written is scored."""
    num_beams: int = Field(default=1, ge=1)
    """Beams of the search at the end of the run."""


TASKS: tuple[TaskName, ...] = ("instruct", "classify", "regress", "tag", "answer", "seq2seq")

TaskSettings = Annotated[
    Annotated[InstructSettings, Tag("instruct")]
    | Annotated[ClassifySettings, Tag("classify")]
    | Annotated[RegressSettings, Tag("regress")]
    | Annotated[TagSettings, Tag("tag")]
    | Annotated[AnswerSettings, Tag("answer")]
    | Annotated[Seq2SeqSettings, Tag("seq2seq")],
    Discriminator(tag_of("name")),
    BeforeValidator(chosen_by("name", TASKS, "instruct")),
]
