"""Two variants of a core that the `tokenizers` library cannot be asked for: no special tokens, no space put before.

**Plain text.** `encode_special_tokens` keeps the library from cutting special tokens out of a text, but a model whose
vocabulary holds them may still find them there: Unigram as pieces, BPE by merges that lead to them, WordPiece as words.
`plain_core` renames them to what no text can hold and drops such merges, as SentencePiece does (its control pieces are
never found in text).

**Continued text.** SentencePiece tokenizers put a space before a text, which is wrong where the text goes on from
another piece. `continuing_core` is the same core without that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Core
from tokenizers import models

from trivium.tokenizer.bounded import library_errors

_UNSEEN = " \U0010ffff"
"""Begins the new names. No model is shown a space: it ends a word, or is written as another character before."""


def plain_core(core: Core) -> Core:
    """A core with the same ids that finds no special token in any text (`core` itself where that is so already)."""
    core.encode_special_tokens = True
    special = {t.content: i for i, t in core.get_added_tokens_decoder().items() if t.special and t.content}
    if not _finds(core, special):
        return core
    content = json.loads(core.to_str())
    model = content["model"]
    renamed = {token: _UNSEEN + token for token in special}
    if isinstance(model["vocab"], list):
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {renamed.get(token, token): i for token, i in model["vocab"].items()}
    if "merges" in model:
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [p for p in pairs if not {p[0], p[1], p[0] + p[1]} & renamed.keys()]
    if "unk_token" in model:
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    for token in content["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"]) if token["special"] else token["content"]
    content["post_processor"] = None  # it may name them, and nothing is added here
    plain = Core.from_str(json.dumps(content))
    plain.encode_special_tokens = True
    return plain


def _finds(core: Core, special: Mapping[str, int]) -> bool:
    """Whether plain text can become a special token: always assumed of Unigram, tried out for the others."""
    if isinstance(core.model, models.Unigram):
        return bool(special)
    ids = set(special.values())
    tries = [form for token in special for form in (token, f"a{token}a", f"a {token} a")]
    with library_errors("the vocabulary cannot write the text of its special tokens"):
        return any(ids & set(encoding.ids) for encoding in core.encode_batch_fast(tries, add_special_tokens=False))


def continuing_core(core: Core) -> tuple[Core, bool] | None:
    """`core` without the space before a text, and whether only its first word may be taken from that core.

    The second is so where every word gets that space, not the text alone. None when no space is put before a text.
    """
    splitter, normalizer = _state(core.pre_tokenizer), _state(core.normalizer)
    before = json.dumps([splitter, normalizer])
    parts = _parts(splitter, "pretokenizers")
    for part in parts:
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    kept = [part for part in _parts(normalizer, "normalizers") if part["type"] != "Prepend"]
    for part in kept:
        if part["type"] == "Strip":
            part["strip_left"] = False
    if normalizer is not None and len(kept) < len(_parts(normalizer, "normalizers")):
        normalizer = {"type": "Sequence", "normalizers": kept} if kept else None
    if json.dumps([splitter, normalizer]) == before:
        return None
    content = {**json.loads(core.to_str()), "pre_tokenizer": splitter, "normalizer": normalizer}
    continuing = Core.from_str(json.dumps(content))
    continuing.encode_special_tokens = core.encode_special_tokens
    return continuing, any(part["type"] in ("WhitespaceSplit", "Whitespace") for part in parts)


def _state(component: Any) -> dict[str, Any] | None:
    """What a part of a core says of itself."""
    return None if component is None else json.loads(component.__getstate__())


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The members of a sequence, or the one component itself."""
    if component is None:
        return []
    return [part for member in component[key] for part in _parts(member, key)] if key in component else [component]
