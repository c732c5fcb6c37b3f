"""How byte-level vocabularies cut a text into words, under the names that GGUF files use.

A pattern is one or several regular expressions, applied one after the other to what is not cut yet: what matches is a
piece, what lies between is one too.

Invariant: `pattern_of(pre_tokenizer_of(p)) == p`'s name, and with llama.cpp's own vocabularies the ids are its ids.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Regex, pre_tokenizers

from trivium.tokenizer.learning import WORD_PATTERN

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace("{1,3}", "")

PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "smollm": (r"\p{N}", _GPT2),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),  # noqa: RUF001 (the signs of several scripts)
}
"""Name -> expressions."""

SAME_AS = {
    "gpt2": "gpt-2",
    "phi-2": "gpt-2",
    "jina-es": "gpt-2",
    "jina-de": "gpt-2",
    "mpt": "gpt-2",
    "olmo": "gpt-2",
    "jais": "gpt-2",
    "roberta-bpe": "gpt-2",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "dbrx": "llama-bpe",
    "smaug-bpe": "llama-bpe",
    "stablelm2": "qwen2",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "codeshell": "smollm",
}
"""Other names of the same patterns."""

WHOLE_WORDS = frozenset({"llama-bpe", "llama3", "llama-v3"})
"""Names that also say: a word that the vocabulary holds is taken whole, whatever the merges would make of it."""


def pre_tokenizer_of(pattern: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    """The library's pre-tokenizer: the cuts, then each byte written as one printable character."""
    cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in pattern]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def pattern_of(pre_tokenizer: pre_tokenizers.PreTokenizer) -> str | None:
    """The name of the pattern that cuts as `pre_tokenizer` does; None when it is none of them."""
    outer = json.loads(pre_tokenizer.__getstate__())
    parts = outer["pretokenizers"] if outer["type"] == "Sequence" else [outer]
    *cuts, last = parts
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    expressions = tuple(_expression(part) for part in cuts) + ((_GPT2,) if last["use_regex"] else ())
    if expressions == (WORD_PATTERN,):  # the same up to runs that are longer than any of our words
        return "llama-bpe"
    return next((name for name, pattern in PATTERNS.items() if pattern == expressions), None)


def _expression(part: dict[str, Any]) -> str | None:
    """The regular expression of one cut, in this module's spelling."""
    if part["type"] == "Digits" and part["individual_digits"]:
        return r"\p{N}"
    if part["type"] != "Split" or part["behavior"] != "Isolated" or part["invert"]:
        return None
    expression = str(part["pattern"].get("Regex", ""))
    return _SPELLINGS.get(expression, expression)


_CASES = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPELLINGS = {
    _GPT2 + r"|\s+": _GPT2,
    **{p.replace(_CONTRACTIONS, cases): p for p in (_LLAMA3, _QWEN2) for cases in (_CASES, _CASES[3:-1])},
}
