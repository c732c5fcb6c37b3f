"""Tokenizers from before tokenizer.json: the published files of BERT, GPT-2, RoBERTa, Llama and T5.

    vocab.txt                        WordPiece: a token a line; the config says whether text is lower-cased
    vocab.json + merges.txt          byte-level BPE, as Hugging Face names the files
    encoder.json + vocab.bpe         the same, as OpenAI named them
    tokenizer.model, spiece.model    SentencePiece

What the files do not say is known of the family and told from the vocabulary: one with `<s>`, `</s>` and `<mask>` wraps
its texts as RoBERTa and BART do, one with `<|endoftext|>` not at all.

Invariant: the ids are those of the tokenizer that `transformers` makes of the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Core

from trivium.errors import UserError
from trivium.tokenizer.bounded import LARGEST_FILE, read_bytes, read_text
from trivium.tokenizer.learning import LARGEST_VOCABULARY
from trivium.tokenizer.patterns import PATTERNS, pre_tokenizer_of
from trivium.tokenizer.sentencepiece_model import read_model
from trivium.tokenizer.wrapping import set_wrapping

_BPE_FILES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
_MODEL_FILES = ("tokenizer.model", "spiece.model")
_FAIRSEQ_FILE = "sentencepiece.bpe.model"
NAMES = frozenset({"vocab.txt", *_BPE_FILES, *_BPE_FILES.values(), *_MODEL_FILES, _FAIRSEQ_FILE})
"""Names of files that are read here."""

_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_END = "<|endoftext|>"
_NUM_T5_SENTINELS = 100

Source = tuple[Path, Callable[[], Core]]


def find(path: Path, config: Mapping[str, Any]) -> Source | None:
    """The file that holds the vocabulary (in the directory `path`, or `path` itself), and what makes the core of it.

    `config` is what tokenizer_config.json says. None when there is no such file.
    """
    folder = path if path.is_dir() else path.parent

    def has(name: str) -> bool:
        return (folder / name).is_file() and (path.is_dir() or path.name == name)

    for vocabulary, merges in _BPE_FILES.items():
        if has(vocabulary) or has(merges):
            for needed in (vocabulary, merges):
                if not (folder / needed).is_file():
                    raise UserError(f"{folder / needed} does not exist: {vocabulary} and {merges} belong together")
            first, second = folder / vocabulary, folder / merges
            return first, partial(_made, config, _byte_level, first, second)
    if has("vocab.txt"):
        return folder / "vocab.txt", partial(_made, config, _word_piece, folder / "vocab.txt")
    if has(_FAIRSEQ_FILE):
        raise UserError(
            f"{folder / _FAIRSEQ_FILE} numbers its pieces otherwise than the model does (fairseq's way): make a "
            "tokenizer.json with transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    models_found = [folder / name for name in _MODEL_FILES if has(name)]
    if path.is_file() and path.suffix == ".model":
        models_found = [path]
    if models_found:
        return models_found[0], partial(_made, config, _sentence_piece, models_found[0])
    return None


# ------------------------------------------------------------------------------------------------ the three kinds


def _word_piece(path: Path, config: Mapping[str, Any]) -> Core:
    lines = read_text(path, LARGEST_FILE).removesuffix("\n").split("\n")
    if len(lines) > LARGEST_VOCABULARY:
        raise UserError(f"{path} has more than {LARGEST_VOCABULARY:,} lines")
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(lines)}
    usual = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    roles = {role: _name(config, role) or token for role, token in usual.items()}
    for role in ("unk", "sep", "cls"):
        if roles[role] not in vocabulary:
            raise UserError(f"{path} has no line {roles[role]!r}, which every WordPiece vocabulary of BERT's has")
    core = Core(models.WordPiece(vocab=vocabulary, unk_token=roles["unk"]))
    core.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars") is not False,
        strip_accents=_flag(config, "strip_accents", None),
        lowercase=bool(_flag(config, "do_lower_case", True)),
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    core.add_special_tokens([token for token in dict.fromkeys(roles.values()) if token in vocabulary])
    cls, sep = roles["cls"], roles["sep"]
    set_wrapping(core, (cls, "$A", sep), (cls, "$A", sep, "$B:1", f"{sep}:1"))
    return core


def _byte_level(vocabulary_path: Path, merges_path: Path, config: Mapping[str, Any]) -> Core:
    vocabulary = json.loads(read_text(vocabulary_path, LARGEST_FILE))
    if not isinstance(vocabulary, dict) or len(vocabulary) > LARGEST_VOCABULARY:
        raise UserError("it must hold a JSON object of tokens and their ids")
    lines = read_text(merges_path, LARGEST_FILE).split("\n")
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    if wrong := next((pair for pair in pairs if len(pair) != 2), None):
        raise UserError(f"{merges_path.name} must hold two tokens a line, not {' '.join(wrong)[:40]!r}")
    if any(token.endswith("</w>") for token in vocabulary):
        raise UserError("its tokens end words with </w>, so it is no byte-level vocabulary: only those are supported")
    pattern = "qwen2" if str(config.get("tokenizer_class", "")).startswith("Qwen2") else "gpt-2"
    core = Core(models.BPE(vocab=vocabulary, merges=[(left, right) for left, right in pairs]))
    core.pre_tokenizer = pre_tokenizer_of(PATTERNS[pattern])
    if pattern == "gpt-2":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(_flag(config, "add_prefix_space", False)))
    else:
        core.normalizer = normalizers.NFC()
    core.decoder = decoders.ByteLevel()
    is_gpt2 = str(config.get("tokenizer_class", "")).startswith("GPT2")
    if set(_ROBERTA) <= vocabulary.keys() and not is_gpt2:
        core.add_special_tokens([AddedToken(t, lstrip=t == "<mask>", normalized=False) for t in _ROBERTA])
        core.post_processor = processors.RobertaProcessing(
            ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), add_prefix_space=False
        )
    else:
        named = [_name(config, role) for role in ("bos", "eos", "unk", "pad", "mask")]
        core.add_special_tokens([t for t in dict.fromkeys([*named, _END]) if t and (t in named or t in vocabulary)])
    return core


def _sentence_piece(path: Path, config: Mapping[str, Any]) -> Core:
    model = read_model(read_bytes(path, LARGEST_FILE))
    core = model.core()
    vocabulary = core.get_vocab()
    if "T5" in str(config.get("tokenizer_class", "")) or (path.name == "spiece.model" and "<s>" not in vocabulary):
        count = config.get("extra_ids", _NUM_T5_SENTINELS)
        if not isinstance(count, int) or not 0 <= count <= 10_000:
            raise UserError(f"tokenizer_config.json: extra_ids={count!r} must be a number from 0 to 10,000")
        core.add_special_tokens([f"<extra_id_{number}>" for number in reversed(range(count))])
        set_wrapping(core, ("$A", "</s>"), ("$A", "</s>", "$B", "</s>"))
    else:
        bos, eos = _name(config, "bos") or "<s>", _name(config, "eos") or "</s>"
        first = [bos] if _flag(config, "add_bos_token", bos in vocabulary) else []
        last = [eos] if _flag(config, "add_eos_token", False) else []
        second = [f"{slot}:1" for slot in (*first, "$B", *last)]
        set_wrapping(core, (*first, "$A", *last), (*first, "$A", *last, *second))
    return core


# ------------------------------------------------------------------------------------------------ what they share


def _made(config: Mapping[str, Any], make: Callable[..., Core], *paths: Path) -> Core:
    """What `make` makes of the files, and the tokens of `added_tokens_decoder`, each under the id it names."""
    core = make(*paths, config)
    added = config.get("added_tokens_decoder", {})
    if not isinstance(added, dict) or not all(key.isdecimal() and isinstance(t, dict) for key, t in added.items()):
        raise UserError("tokenizer_config.json: added_tokens_decoder must map ids to tokens")
    for key in sorted(added, key=int):
        token = added[key]
        flags = {name: token.get(name) is True for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        core.add_tokens([AddedToken(str(token.get("content")), **flags)])
        if core.token_to_id(str(token.get("content"))) != int(key):
            raise UserError(f"tokenizer_config.json: token {token.get('content')!r} cannot have the id {key}")
    return core


def _name(config: Mapping[str, Any], role: str) -> str | None:
    value = config.get(f"{role}_token")
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def _flag(config: Mapping[str, Any], key: str, default: bool | None) -> bool | None:
    value = config.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"tokenizer_config.json: {key} must be true or false, not {value!r}")
    return value
