"""From a prompt to the ids a model reads: the one place that decides about beginning-of-text tokens.

The rule. A prompt given as ids is taken as it is. A prompt given as text is encoded (special tokens in it are plain
text), and the beginning-of-text token goes in front of it if `add_bos` is "always", or if it is "auto" and the
tokenizer itself says so. Nothing can be predicted from nothing: an empty prompt becomes the beginning-of-text token
in any case, or the end-of-text token, which separates documents in training, where there is no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trivium.errors import UserError
from trivium.generation.settings import GenerationSettings

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer


def document_start(tokenizer: Tokenizer) -> int:
    """The id that stands before a document: the beginning-of-text token, else the end-of-text token.

    Raises UserError when the tokenizer has neither.
    """
    for token in (tokenizer.bos_id, tokenizer.eos_id):
        if token is not None:
            return token
    raise UserError(
        "the tokenizer has neither a beginning-of-text nor an end-of-text token, so nothing can stand before "
        "the first token: name one of them in tokenizer_config.json (bos_token or eos_token)"
    )


def encode_prompt(tokenizer: Tokenizer, prompt: str | Sequence[int], settings: GenerationSettings) -> list[int]:
    """The ids of `prompt` by the rule above; never empty."""
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
        if settings.add_bos == "always" or (settings.add_bos == "auto" and tokenizer.adds_bos):
            ids = [document_start(tokenizer), *ids]
    else:
        ids = [int(token) for token in prompt]
    return ids or [document_start(tokenizer)]


def refuse_unknown_ids(ids: Sequence[int], vocab_size: int, name: str) -> None:
    """Raises UserError when `name` (a prompt, a document) holds an id the model has no embedding for."""
    lowest, highest = min(ids, default=0), max(ids, default=0)
    if lowest < 0 or highest >= vocab_size:
        raise UserError(
            f"{name} holds an id outside the model's vocabulary of {vocab_size} (its ids go from {lowest} to "
            f"{highest}): use the tokenizer that belongs to the model"
        )
