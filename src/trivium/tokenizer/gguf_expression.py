"""A tokenizer of ours in the words of GGUF's metadata, or the reason why GGUF has no words for it.

GGUF cannot hold every tokenizer: words are cut by patterns that llama.cpp knows by name, merges of a SentencePiece
vocabulary become scores, and what is put around a text is one token before and one behind. Where this would change ids,
the tokenizer is refused.

Two departures are accepted, as everywhere: our own words end after `LONGEST_RUN` characters where llama.cpp's go on,
and Qwen's texts are brought to NFC, which llama.cpp leaves out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Core

from trivium.errors import UserError
from trivium.tokenizer.patterns import WHOLE_WORDS, pattern_of
from trivium.tokenizer.pieces import REMOVE_SPACES, Pieces, PieceType, joins_of, scores_of_merges, types_of
from trivium.tokenizer.words import SPACE

if TYPE_CHECKING:
    from trivium.tokenizer.bpe import Tokenizer

ROLE_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "pad": "padding_token_id",
    "unk": "unknown_token_id",
    "cls": "cls_token_id",
    "sep": "seperator_token_id",  # GGUF's own spelling
    "mask": "mask_token_id",
}
"""Role -> the key of its id, after `tokenizer.ggml.`."""


def gguf_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """The metadata of a GGUF file that holds `tokenizer`: keys `tokenizer.*`, plain Python values.

    Raises UserError when GGUF cannot express the tokenizer.
    """
    written = tokenizer.to_json()
    core, content = Core.from_str(written), json.loads(written)
    kind = content["model"]["type"]
    if tokenizer.is_byte_level:
        fields = _byte_level(content, core)
    elif kind == "WordPiece":
        fields = _word_piece(content, core)
    elif kind in ("BPE", "Unigram"):
        fields = _sentence_piece(content, core)
    else:
        raise _refusal(f"its vocabulary is of the kind {kind}")
    ids = {key: getattr(tokenizer, f"{role}_id") for role, key in ROLE_KEYS.items()}
    fields |= {key: token_id for key, token_id in ids.items() if token_id is not None}
    fields |= _around(tokenizer, fields)
    named = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    if tokenizer.chat_template is not None:
        named["tokenizer.chat_template"] = tokenizer.chat_template
    return named


def _refusal(reason: str) -> UserError:
    return UserError(f"GGUF cannot hold this tokenizer: {reason}")


# ------------------------------------------------------------------------------------------------ the kinds


def _tokens_and_types(
    content: Mapping[str, Any], core: Core, unknown: str | None = None
) -> tuple[list[str], list[int]]:
    """The token of each id and its type; ids that no token has are filled up."""
    by_id = {token_id: token for token, token_id in core.get_vocab(with_added_tokens=True).items()}
    tokens = [by_id.get(token_id, f"[PAD{token_id}]") for token_id in range(max(by_id, default=-1) + 1)]
    special = [token["content"] for token in content["added_tokens"] if token["special"]]
    own = [token["content"] for token in content["added_tokens"] if not token["special"]]
    types = types_of(tokens, special, own, unknown)
    return tokens, [kind if token_id in by_id else int(PieceType.UNUSED) for token_id, kind in enumerate(types)]


def _byte_level(content: Mapping[str, Any], core: Core) -> dict[str, Any]:
    pre = None if core.pre_tokenizer is None else pattern_of(core.pre_tokenizer)
    if pre is None:
        raise _refusal("its way to cut words is none that llama.cpp knows")
    if content["normalizer"] not in (None, {"type": "NFC"}) or (content["normalizer"] and pre != "qwen2"):
        raise _refusal(f"it normalizes texts ({content['normalizer']['type']})")
    if content["model"]["ignore_merges"] != (pre in WHOLE_WORDS) and not _is_reached_by_merges(content):
        if pre != "llama-bpe":
            raise _refusal("it takes words whole that its merges do not lead to, which llama.cpp does not here")
        pre = "smaug-bpe"  # the same pattern, with the merges always followed
    tokens, types = _tokens_and_types(content, core)
    types = [PieceType.NORMAL if kind == PieceType.BYTE else kind for kind in types]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": [*map(int, types)], "merges": merges}


def _is_reached_by_merges(content: Mapping[str, Any]) -> bool:
    """Whether following the merges writes every token's own text as that token, so that both ways agree."""
    model = {**content["model"], "ignore_merges": False}
    merging = Core.from_str(json.dumps({**content, "model": model, "added_tokens": [], "post_processor": None})).model
    added = {token["content"] for token in content["added_tokens"]}
    vocabulary = {token: token_id for token, token_id in model["vocab"].items() if token not in added}
    return all([found.id for found in merging.tokenize(t)] == [token_id] for t, token_id in vocabulary.items())


def _word_piece(content: Mapping[str, Any], core: Core) -> dict[str, Any]:
    normalizer = content["normalizer"] or {}
    if normalizer.get("type") != "BertNormalizer" or content["pre_tokenizer"] != {"type": "BertPreTokenizer"}:
        raise _refusal("it does not cut texts as BERT does")
    if not (normalizer["clean_text"] and normalizer["handle_chinese_chars"]):
        raise _refusal("it keeps control characters or ideographs together, which llama.cpp does not")
    prefix = content["model"]["continuing_subword_prefix"]
    tokens, types = _tokens_and_types(content, core)

    def written(token: str, kind: int) -> str:
        if kind in (PieceType.CONTROL, PieceType.UNUSED, PieceType.USER_DEFINED):
            return token
        return token.removeprefix(prefix) if token.startswith(prefix) else SPACE + token

    lowercase = normalizer["lowercase"]
    accents = normalizer["strip_accents"]
    return {
        "model": "bert",
        "pre": "default",
        "tokens": [written(token, kind) for token, kind in zip(tokens, types, strict=True)],
        "token_type": [int(PieceType.NORMAL if kind == PieceType.BYTE else kind) for kind in types],
        "normalizer.lowercase": lowercase,
        "normalizer.strip_accents": lowercase if accents is None else accents,
    }


def _sentence_piece(content: Mapping[str, Any], core: Core) -> dict[str, Any]:
    model, preparation = content["model"], _preparation(content)
    is_unigram = model["type"] == "Unigram"
    if not is_unigram and (preparation["charsmap"] or preparation["removes_spaces"]):
        raise _refusal("it changes characters or spaces before its merges, which llama.cpp does for Unigram alone")
    unknown = model["vocab"][model["unk_id"]][0] if is_unigram else model["unk_token"]
    tokens, types = _tokens_and_types(content, core, unknown)
    if not model["byte_fallback"]:
        types = [int(PieceType.NORMAL) if kind == PieceType.BYTE else kind for kind in types]
    if is_unigram:
        known = dict(model["vocab"])
        scores = [float(known.get(token, 0.0)) for token in tokens]
    else:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        merges = [(left, right) for left, right in pairs]
        scores = scores_of_merges(tokens, merges)
        joins = joins_of(Pieces(tokens, scores, types))
        if joins != merges and _in_groups(joins) != _in_groups(merges):
            raise _refusal("its merges follow no order of scores")
    # User-defined tokens are looked for in the text as it is, where a space is a space.
    own = PieceType.USER_DEFINED
    spelled = [t.replace(SPACE, " ") if kind == own else t for t, kind in zip(tokens, types, strict=True)]
    fields = {
        "model": "t5" if is_unigram else "llama",
        "pre": "default",
        "tokens": spelled if len(set(spelled)) == len(tokens) else tokens,
        "scores": scores,
        "token_type": [int(kind) for kind in types],
        "add_space_prefix": preparation["adds_prefix"],
    }
    if is_unigram:
        fields["remove_extra_whitespaces"] = preparation["removes_spaces"]
        if preparation["charsmap"]:
            fields["precompiled_charsmap"] = list(preparation["charsmap"])
    return fields


def _in_groups(merges: list[tuple[str, str]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Merges with those to the same piece, whose order among themselves no score can say, put in one order."""
    return [(piece, sorted(group)) for piece, group in groupby(merges, key=lambda merge: merge[0] + merge[1])]


def _preparation(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is done to a text before the model sees it: `charsmap`, `removes_spaces`, `adds_prefix`."""
    found: dict[str, Any] = {"charsmap": b"", "removes_spaces": False, "adds_prefix": False}
    for step in _steps(content["normalizer"], "normalizers"):
        kind, pattern = step["type"], step.get("pattern", {})
        if kind == "Precompiled":
            found["charsmap"] = base64.b64decode(step["precompiled_charsmap"])
        elif kind == "Strip" or pattern.get("Regex") in (REMOVE_SPACES, " {2,}"):
            found["removes_spaces"] = True
        elif kind == "Prepend":
            found["adds_prefix"] = True
        elif kind != "Replace" or pattern != {"String": " "} or step["content"] != SPACE:
            raise _refusal(f"it prepares texts in a way of its own ({kind})")
    for step in _steps(content["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "WhitespaceSplit" and found["charsmap"]:  # which makes spaces of all white space
            found["removes_spaces"] = True
        elif step["type"] == "Metaspace" and step["replacement"] == SPACE:
            found["adds_prefix"] |= step["prepend_scheme"] != "never"
        else:
            raise _refusal(f"it cuts words in a way of its own ({step['type']})")
    return found


def _steps(component: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if component is None:
        return []
    return [step for member in component[key] for step in _steps(member, key)] if key in component else [component]


# ------------------------------------------------------------------------------------------------ around a text


def _around(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is put around a text. UserError when it is more than one token on each side, or not the usual one."""
    ids, _ = tokenizer.wrap([_TEXT])
    place = ids.index(_TEXT)
    before, behind = ids[:place], ids[place + 1 :]
    is_bert = fields["model"] == "bert"
    begin, end = (tokenizer.cls_id, tokenizer.sep_id) if is_bert else (tokenizer.bos_id, tokenizer.eos_id)
    if before not in ([], [begin]) or behind not in ([], [end]):
        raise _refusal(f"around a text it puts {before} and {behind}, not its beginning {begin} and end {end}")
    if is_bert:
        return {"add_bos_token": bool(before), "add_sep_token": bool(behind)}
    around: dict[str, Any] = {"add_bos_token": bool(before), "add_eos_token": bool(behind)}
    joined, _ = tokenizer.wrap([_TEXT], [_TEXT])
    if fields.get("pre") == "gpt-2" and behind and joined == [*before, _TEXT, *behind, *behind, _TEXT, *behind]:
        around |= {"pre": "roberta-bpe", "add_sep_token": True}
    return around


_TEXT = -1
"""Stands for the text."""
