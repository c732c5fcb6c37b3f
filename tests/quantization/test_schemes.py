"""Schemes: their usual settings, the rules of layout, and what does not go together."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trivium.errors import UserError
from trivium.quantization.schemes import FORMATS, Layout, Scheme, layout, packed_bytes, scheme_for


@pytest.mark.parametrize("format", FORMATS)
def test_a_name_is_the_usual_scheme(format: str) -> None:
    scheme = scheme_for(format)
    assert scheme_for(scheme) is scheme
    assert Scheme(**scheme.model_dump()) == scheme
    assert scheme.group_size == {"int4": 32, "int4_asymmetric": 32, "nf4": 64}.get(format, 0)
    assert scheme.double_quantization == (format == "nf4")
    assert scheme.packs == (format not in ("fp16", "bf16"))


@pytest.mark.parametrize(
    "format, changes, said",
    [
        ("int5", {}, "there is no format 'int5' to quantize to; did you mean int"),
        ("q", {}, "use one of fp16, bf16, int8, int8_dynamic, int4, int4_asymmetric, nf4"),
        ("int4", {"group_size": 48}, "group_size: must be one of 32, 64, 128"),
        ("int8", {"group_size": 64}, "int8 has no groups"),
        ("int4", {"double_quantization": True}, "double_quantization is for nf4 alone"),
        ("nf4", {"method": "gptq"}, "method gptq is for int8"),
        ("bf16", {"method": "awq"}, "method awq is for int8"),
        ("int4", {"method": "best"}, "method"),
        ("int4", {"groupsize": 64}, "did you mean group_size"),
    ],
)
def test_what_does_not_go_together_is_refused(format: str, changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        scheme_for(format, **changes)


def test_rows_that_are_no_whole_groups_take_a_smaller_group_or_int8() -> None:
    wide, asymmetric = scheme_for("int4", group_size=128), scheme_for("int4_asymmetric")
    assert layout(wide, 256) == Layout("int4", 128, False)
    assert layout(wide, 576) == Layout("int4", 64, False)
    assert layout(wide, 96) == Layout("int4", 32, False)
    assert layout(wide, 100) == Layout("int8", 0, False)
    assert layout(asymmetric, 64) == Layout("int4_asymmetric", 32, False)
    assert layout(scheme_for("nf4"), 96) == Layout("nf4", 32, True)
    assert layout(scheme_for("nf4", double_quantization=False), 64) == Layout("nf4", 64, False)
    assert layout(scheme_for("int8_dynamic"), 100) == Layout("int8_dynamic", 0, False)


@pytest.mark.parametrize("name", ["embedding", "head.output"])
@pytest.mark.parametrize("format", ["int8", "int8_dynamic", "int4", "int4_asymmetric", "nf4"])
def test_tables_have_8_bits(format: str, name: str) -> None:
    assert layout(scheme_for(format), 256, name) == Layout("int8", 0, False)
    assert packed_bytes(scheme_for(format), 1000, 256, name) == 1000 * 256 + 4 * 1000


def test_modules_are_kept_by_name_or_pattern() -> None:
    scheme = scheme_for("int4", keep=("head.output", "*.mlp.down"))
    kept = ["head.output", "stack.blocks.0.mlp.down", "stack.blocks.11.mlp.down"]
    assert [name for name in [*kept, "embedding", "stack.blocks.0.mlp.up"] if scheme.keeps(name)] == kept


def test_schemes_do_without_torch() -> None:
    code = "import sys, trivium.quantization.schemes; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
