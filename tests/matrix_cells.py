"""Which tests stand behind each cell of the support matrix (`trivium matrix`).

A cell names patterns of test ids below `tests/`; it is proven when every pattern matches a test and all that match
pass. Run as a module, prints the files that hold them.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Cell:
    """One cell and what proves it."""

    tests: tuple[str, ...]
    says: Literal["yes", "refused"] = "yes"


@dataclass(frozen=True)
class Table:
    """One table of the matrix."""

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Cell]]


def test(path: str, *cases: str) -> tuple[str, ...]:
    """The pattern of a test, or one for each of its parametrised cases (a part of the case's name is enough)."""
    if not cases:
        return (f"{path}*",)
    return tuple(f"{path}*[[]*{glob.escape(case)}*]" for case in cases)


def yes(*tests: tuple[str, ...]) -> Cell:
    """Works."""
    return Cell(tuple(pattern for group in tests for pattern in group))


def refused(*tests: tuple[str, ...]) -> Cell:
    """Makes no sense, and is refused."""
    return Cell(tuple(pattern for group in tests for pattern in group), "refused")


FAMILY_COLUMNS = (
    "in and out, logits, gradients",
    "other heads",
    "greedy, cached",
    "beam search",
    "GGUF out and in",
    "wrong configs refused",
)
# model_type: (test file, whether its cases are named after it, the architecture of GGUF).
DECODERS = {
    "llama": ("llama", "llama"),
    "mistral": ("mistral", None),
    "qwen2": ("qwen", "qwen2"),
    "qwen3": ("qwen", "qwen3"),
    "gemma2": ("gemma", "gemma2"),
    "gemma3_text": ("gemma", "gemma3"),
    "gpt2": ("gpt2", "gpt2"),
    "gpt_neox": ("gpt_neox", None),
    "opt": ("opt", None),
    "bloom": ("bloom", None),
}


def decoder_row(file: str, gguf: str | None) -> dict[str, Cell]:
    """What is proven of one family of decoders."""
    path = f"families/test_{file}.py"
    cells = {
        "in and out, logits, gradients": yes(test(f"{path}::test_equals_transformers")),
        "other heads": yes(test(f"{path}::test_heads")),
        "greedy, cached": yes(test(f"{path}::test_equals_transformers")),
        "beam search": yes(test(f"{path}::test_equals_transformers")),
        "wrong configs refused": yes(test(f"{path}::test_what_we_would_compute_otherwise_is_refused")),
    }
    if gguf is not None:
        cells["GGUF out and in"] = yes(test("checkpoints/test_gguf_writing.py::test_fp32_comes_back_as_it_was", gguf))
    return cells


def encoder_row(name: str) -> dict[str, Cell]:
    """What is proven of one family of encoders."""
    path = f"families/test_{name}.py"
    return {
        "in and out, logits, gradients": yes(test(f"{path}::test_equals_transformers")),
        "other heads": yes(test(f"{path}::test_equals_transformers"), test(f"{path}::test_every_head_can_be_put_on")),
        "wrong configs refused": yes(test(f"{path}::test_what_we_would_compute_otherwise_is_refused")),
    }


def two_stack_row(name: str) -> dict[str, Cell]:
    """What is proven of one family of encoder-decoders."""
    path = f"families/test_{name}.py"
    heads = "test_bare_model_equals" if name == "marian" else "test_other_heads_equal"
    return {
        "in and out, logits, gradients": yes(test(f"{path}::test_equals_transformers")),
        "other heads": yes(test(f"{path}::{heads}")),
        "greedy, cached": yes(test(f"{path}::test_greedy_tokens_are_those_of_transformers")),
        "beam search": yes(test(f"{path}::test_searched_texts_are_those_of_transformers")),
        "wrong configs refused": yes(test(f"{path}::test_what_we_would_compute_otherwise_is_refused")),
    }


FAMILY_ROWS = {
    **{name: decoder_row(*how) for name, how in DECODERS.items()},
    **{name: encoder_row(name) for name in ("bert", "roberta", "distilbert", "modernbert")},
    **{name: two_stack_row(name) for name in ("t5", "bart", "mbart", "marian")},
}

# objective: {kind: the case it is tested as; None: makes no sense}.
OBJECTIVES: dict[str, dict[str, str | None]] = {
    "causal": {"decoder": "causal-llama", "encoder": None, "encoder-decoder": None},
    "prefix": {"decoder": "prefix-llama", "encoder": None, "encoder-decoder": "prefix-t5"},
    "masked": {"decoder": None, "encoder": "masked-bert", "encoder-decoder": None},
    "spans": {"decoder": None, "encoder": None, "encoder-decoder": "spans-t5"},
    "denoise": {"decoder": None, "encoder": None, "encoder-decoder": "denoise-bart"},
    "mixture": {"decoder": None, "encoder": None, "encoder-decoder": "mixture-t5"},
    "pairs": {"decoder": None, "encoder": None, "encoder-decoder": "pairs-marian"},
}
LEARNING = (
    "test_packed_equals_unpacked",
    "test_accumulated_equals_one_batch",
    "test_padding_changes_nothing",
    "test_a_small_model_learns_eight_sentences_by_heart",
)


def objective_cell(objective: str, kind: str, case: str | None) -> Cell:
    """Packed = unpacked, accumulated = one batch, padding changes nothing, and it learns; or it is refused."""
    if case is None:
        path = "data/test_objectives_settings.py::test_every_combination_is_allowed_or_refused_with_a_reason"
        return refused((f"{path}[[]{objective}-{kind}]",))
    return yes(*(test(f"pretraining/test_objectives.py::{name}", case) for name in LEARNING))


USES: dict[str, dict[str, Cell]] = {
    "generate, greedy": {
        "decoder": yes(test("generation/test_generate.py::test_200_greedy_tokens_equal_transformers")),
        "encoder-decoder": yes(test("generation/test_reading.py::test_tokens_equal_transformers")),
    },
    "generate, beam search": {
        "decoder": yes(test("generation/test_beam_search.py::test_tokens_of_decoders_equal_transformers")),
        "encoder-decoder": yes(
            test("generation/test_beam_search.py::test_tokens_of_encoder_decoders_equal_transformers")
        ),
    },
    "chat": {"decoder": yes(test("generation/test_chat.py::test_answers_follow_the_conversation"))},
    "fill-mask": {
        "decoder": refused(test("generation/test_fill_mask.py::test_refusals")),
        "encoder": yes(test("generation/test_fill_mask.py::test_bert_equals_the_pipeline")),
    },
    "classify": {
        "decoder": yes(test("generation/test_classify.py::test_probabilities_equal_transformers", "llama")),
        "encoder": yes(test("generation/test_classify.py::test_probabilities_equal_transformers", "bert")),
        "encoder-decoder": yes(test("generation/test_classify.py::test_probabilities_equal_transformers", "bart")),
    },
    "embed": {
        "decoder": yes((r"generation/test_embed.py::test_other_kinds[[]decoder]",)),
        "encoder": yes(test("generation/test_embed.py::test_vectors_equal_transformers")),
        "encoder-decoder": yes((r"generation/test_embed.py::test_other_kinds[[]encoder-decoder]",)),
    },
    "perplexity": {
        "decoder": yes(test("generation/test_scoring.py::test_logprobs_equal_transformers")),
        "encoder": refused(test("generation/test_scoring.py::test_models_without_perplexity_say_why")),
        "encoder-decoder": refused(test("generation/test_scoring.py::test_models_without_perplexity_say_why")),
    },
    "pretrain, resume to the bit": {
        "decoder": yes(test("pretraining/test_run.py::test_killed_ten_times_a_pretraining_run_ends_bit_identical")),
        "encoder": yes(test("pretraining/test_kinds.py::test_a_resumed_run_ends_in_the_same_bytes", "masked")),
        "encoder-decoder": yes(test("pretraining/test_kinds.py::test_a_resumed_run_ends_in_the_same_bytes", "spans")),
    },
    "fine-tune a classifier": {
        kind: yes(
            test("finetuning/test_classification.py::test_micro_batches_and_padding_change_nothing", case),
            test("finetuning/test_classification.py::test_learns_what_can_be_learned", case),
        )
        for kind, case in (("decoder", "llama"), ("encoder", "bert"), ("encoder-decoder", "bart"))
    },
}

GGUF = "checkpoints/test_gguf"
FORMATS: dict[str, dict[str, Cell]] = {
    "Hugging Face directory": {
        "read": yes(test("checkpoints/test_directory.py")),
        "written": yes(test("checkpoints/test_directory.py")),
    },
    "GGUF F32": {
        "read": yes(test(f"{GGUF}_file.py::test_tensors_of_every_kind_are_bit_for_bit_the_library_s")),
        "written": yes(test(f"{GGUF}_writing.py::test_fp32_comes_back_as_it_was")),
    },
    **{
        f"GGUF {kind.upper()}": {
            "read": yes(test(f"{GGUF}_file.py::test_tensors_of_every_kind_are_bit_for_bit_the_library_s")),
            "written": yes(test(f"{GGUF}_writing.py::test_other_formats_hold_what_they_can", case)),
        }
        for kind, case in (("f16", "fp16"), ("bf16", "bf16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"))
    },
    **{
        f"GGUF {kind}": {"read": yes(test(f"{GGUF}_file.py::test_tensors_of_every_kind_are_bit_for_bit_the_library_s"))}
        for kind in ("Q4_1", "Q5_0", "Q5_1", "Q2_K to Q6_K")
    },
}

TOKENIZERS: dict[str, dict[str, Cell]] = {
    "byte-level BPE": {
        "ids of transformers": yes(test("tokenizer/test_bpe.py::test_ids_equal_those_of_transformers")),
        "learned here": yes(test("tokenizer/test_kinds.py::test_transformers_opens_it_with_equal_ids")),
        "from and to GGUF": yes(test("tokenizer/test_gguf_vocabulary.py::test_there_and_back", "gpt2")),
    },
    "WordPiece": {
        "ids of transformers": yes(test("tokenizer/test_formats.py::test_bert")),
        "from and to GGUF": yes(test("tokenizer/test_gguf_vocabulary.py::test_there_and_back", "bert")),
    },
    "Unigram": {
        "ids of transformers": yes(test("tokenizer/test_sentencepiece_model.py::test_a_directory_as_t5_has_it")),
        "from and to GGUF": yes(test("tokenizer/test_gguf_vocabulary.py::test_there_and_back", "t5")),
    },
    "SentencePiece BPE": {
        "ids of transformers": yes(test("tokenizer/test_sentencepiece_model.py::test_models_learned_by_the_package")),
        "from and to GGUF": yes((r"tokenizer/test_gguf_vocabulary.py::test_there_and_back[[]llama]",)),
    },
}

KINDS = ("decoder", "encoder", "encoder-decoder")
TABLES = (
    Table("Families", FAMILY_COLUMNS, FAMILY_ROWS),
    Table(
        "Pretraining objectives",
        KINDS,
        {
            objective: {kind: objective_cell(objective, kind, case) for kind, case in kinds.items()}
            for objective, kinds in OBJECTIVES.items()
        },
    ),
    Table("Uses", KINDS, USES),
    Table("Formats", ("read", "written"), FORMATS),
    Table("Tokenizers", ("ids of transformers", "learned here", "from and to GGUF"), TOKENIZERS),
)


def test_files() -> list[str]:
    """The files that hold the tests, relative to the repository."""
    cells = [cell for table in TABLES for row in table.rows.values() for cell in row.values()]
    return sorted({f"tests/{pattern.partition('::')[0].rstrip('*')}" for cell in cells for pattern in cell.tests})


if __name__ == "__main__":
    sys.stdout.write(" ".join(test_files()) + "\n")
