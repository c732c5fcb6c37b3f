"""From a prompt to the ids a model reads: the one place that decides about special tokens.

The rule for decoders. A prompt given as ids is taken as it is. A prompt given as text is encoded (special tokens in it
are plain text), and the beginning-of-text token goes in front of it if `add_bos` is "always", or if it is "auto" and
the tokenizer itself says so. Nothing can be predicted from nothing: an empty prompt becomes the beginning-of-text token
in any case, or the end-of-text token, which separates documents in training, where there is no other.

The rule for encoders and for the sources of encoder-decoders. Text is encoded and wrapped as the tokenizer says
(`[CLS] a [SEP]`, `a </s>`). Of the special tokens only blanks to be filled (the mask, `<extra_id_0>`, ...) are read as
such in a text; all others are plain text there too.
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
    """The ids of a decoder's `prompt` by the rule above; never empty."""
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
        if settings.add_bos == "always" or (settings.add_bos == "auto" and tokenizer.adds_bos):
            ids = [document_start(tokenizer), *ids]
    else:
        ids = [int(token) for token in prompt]
    return ids or [document_start(tokenizer)]


def encode_source(tokenizer: Tokenizer, source: str | Sequence[int]) -> list[int]:
    """The ids of an encoder-decoder's `source` by the rule above; given as ids it is taken as it is. Never empty."""
    if isinstance(source, str):
        ids, _ = tokenizer.wrap(encode_with_blanks(tokenizer, source))
    else:
        ids = [int(token) for token in source]
    return ids or [document_start(tokenizer)]


def encode_with_blanks(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of `text` in which the mask and `<extra_id_0>`, ... are themselves and other special tokens are text.

    Raises UserError when the text holds both, since the tokenizer reads all special tokens or none.
    """
    ids_of_blanks = {tokenizer.mask_id, *tokenizer.sentinel_ids}
    # Sentinels are not special tokens in every vocabulary; those that are not are always read as themselves.
    blanks = {token for token, token_id in tokenizer.special_tokens.items() if token_id in ids_of_blanks}
    if not any(blank in text for blank in blanks):
        return tokenizer.encode(text)
    others = [token for token in tokenizer.special_tokens if token not in blanks and token in text]
    if others:
        raise UserError(f"the text holds a blank to fill and also {others[0]!r}, a special token: remove the latter")
    return tokenizer.encode(text, parse_special=True)


def refuse_unknown_ids(ids: Sequence[int], vocab_size: int, name: str) -> None:
    """Raises UserError when `name` (a prompt, a document) holds an id the model has no embedding for."""
    lowest, highest = min(ids, default=0), max(ids, default=0)
    if lowest < 0 or highest >= vocab_size:
        raise UserError(
            f"{name} holds an id outside the model's vocabulary of {vocab_size} (its ids go from {lowest} to "
            f"{highest}): use the tokenizer that belongs to the model"
        )


def refuse_too_long(ids: Sequence[int], positions: str, max_positions: int, name: str) -> None:
    """Raises UserError when an encoder has no positions for `name`: where they are learned there is no further one.

    Other kinds of positions go on, and `max_positions` is a promise only.
    """
    if positions == "learned" and len(ids) > max_positions:
        raise UserError(
            f"{name} has {len(ids)} tokens with the special ones, and the model has learned {max_positions} positions: "
            "shorten it"
        )
