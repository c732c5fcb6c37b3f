"""The special tokens of the three kinds of models, and how each wraps its texts.

A decoder's texts begin with `<|endoftext|>`; an encoder reads `[CLS] a [SEP] b [SEP]` and fills in `[MASK]` (BERT,
Devlin et al., 2019); an encoder-decoder reads `a </s>` and restores the spans behind `<extra_id_0>`, `<extra_id_1>`,
... (T5, Raffel et al., 2020) or behind `<mask>` (BART, Lewis et al., 2020). Beneath, all are byte-level BPE.

A mask swallows the space before it, as RoBERTa's does: the hidden word brings its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Core

from trivium.tokenizer.chat import CHATML
from trivium.tokenizer.learning import DEFAULT_SPECIAL_TOKENS, END_OF_TEXT, PAD
from trivium.tokenizer.roles import Roles

Kind = Literal["decoder", "encoder", "encoder-decoder"]


@dataclass(frozen=True)
class KindOfTokenizer:
    """What is particular to the tokenizer of one kind of model."""

    special_tokens: tuple[str, ...]
    """In the order of their ids, from 0."""
    roles: Roles
    """Which of them does what."""
    single: str
    """How one text is wrapped, in the words of the library's template."""
    pair: str | None = None
    """How two texts are wrapped."""
    chat_template: str | None = None
    """Jinja source."""

    def finish(self, core: Core) -> None:
        """Give a learned core its wrapping and its mask."""
        if (mask := self.roles.mask) is not None:
            core.add_special_tokens([AddedToken(mask, lstrip=True, normalized=False, special=True)])
        wrapping = f"{self.single} {self.pair or ''}".split()
        named = [(token, core.token_to_id(token)) for token in self.special_tokens if token in wrapping]
        core.post_processor = processors.TemplateProcessing(single=self.single, pair=self.pair, special_tokens=named)


KINDS: dict[Kind, KindOfTokenizer] = {
    "decoder": KindOfTokenizer(
        special_tokens=DEFAULT_SPECIAL_TOKENS,
        roles=Roles(bos=END_OF_TEXT, eos=END_OF_TEXT, pad=PAD),
        single=f"{END_OF_TEXT} $A",  # elsewhere too a text is to begin as it did in training
        chat_template=CHATML,
    ),
    "encoder": KindOfTokenizer(
        special_tokens=("[PAD]", "[CLS]", "[SEP]", "[MASK]"),
        roles=Roles(bos="[CLS]", eos="[SEP]", pad="[PAD]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    ),
    "encoder-decoder": KindOfTokenizer(
        special_tokens=("<pad>", "</s>", "<mask>", *(f"<extra_id_{number}>" for number in range(100))),
        roles=Roles(eos="</s>", pad="<pad>", mask="<mask>"),
        single="$A </s>",
        pair="$A </s> $B </s>",
    ),
}
