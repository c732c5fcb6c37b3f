"""Templates of strangers: what would take the machine is refused, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trivium.errors import UserError
from trivium.tokenizer import sandbox
from trivium.tokenizer.sandbox import TemplateEnvironment, run_metered

MESSAGES = [{"role": "user", "content": "hello"}]


def render(source: str) -> str:
    environment = TemplateEnvironment()
    template = run_metered(lambda: environment.from_string(environment.metered(source)), "be compiled")
    return run_metered(lambda: template.render(messages=MESSAGES), "write this conversation")


LONG = "{% set x = 'a' * 1000000 %}"
DOUBLE = "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}"
BOMBS = {
    "times": "{{ 'a' * 1000000000 }}",
    "times content": "{% set n = 1000000000 %}{% set x = n * messages[0].content %}",
    "times list": "{% set x = [1] * 1000000000 %}",
    "power": "{% set n = 1000000 %}{{ 10 ** n }}",
    "whole numbers": "{% set ns = namespace(x=9999) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "double by plus": DOUBLE + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "double by tilde": DOUBLE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "double by block": DOUBLE + "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "double by macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + DOUBLE + "{% set ns.x = m(ns.x) %}{% endfor %}",
    "shared lists": DOUBLE + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "long concatenation": LONG + "{{ " + "~".join(["x"] * 2000) + " }}",
    "endless recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "tree recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "silent loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "loud loops": "{% for a in range(9999) %}{% for b in range(9999) %}xxxxxxxxxxxx{% endfor %}{% endfor %}",
    "range": "{{ range(1000000000) | list }}",
    "center": "{{ 'a'.center(1000000000) }}",
    "method in a variable": "{% set pad = 'a'.ljust %}{{ pad(1000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1000000000) }}",
    "format": "{{ '{:>1000000000}'.format('a') }}",
    "format by argument": "{{ '{:>{w}}'.format('a', w=1000000000) }}",
    "many formats": "{{ ('{0:>9999}' * 1000000).format('a') }}",
    "long formats": LONG + "{{ ('{0}' * 10000).format(x) }}",
    "percent": "{{ '%1000000000d' % 3 }}",
    "percent star": "{{ '%*d' % (1000000000, 3) }}",
    "replace": LONG + "{{ x.replace('', x) }}",
    "replace filter": LONG + "{{ x | replace('a', x) }}",
    "join": LONG + "{{ ([1] * 100000) | join(x) }}",
    "join method": LONG + "{{ x.join(['1'] * 100000) }}",
    "list as text": LONG + "{{ [x] * 100000 }}",
    "list to string": LONG + "{% set y = ([x] * 100000) | string %}",
    "list by tilde": LONG + "{% set y = ([x] * 100000) ~ '' %}",
    "list by percent": LONG + "{% set y = '%s' % ([x] * 100000,) %}",
    "json": LONG + "{{ ([x] * 100000) | tojson }}",
    "json indent": "{{ [[1]] | tojson(indent=1000000000) }}",
    "json deep indent": "{{ ([[[[1] * 1000] * 100] * 10] * 10) | tojson(indent=60) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "indent lines": "{{ ('a\n' * 3000000) | indent(60) }}",
    "round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "slices kept": LONG
    + "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [x[i:]] %}{% endfor %}",
    "copies kept": LONG
    + "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [x|upper] %}{% endfor %}",
    "splits kept": LONG
    + "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [x|list] %}{% endfor %}",
    "deep source": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep loops": "{% for a in [1] %}" * 100 + "{% endfor %}" * 100,
    "bytes of a number": "{{ (5).to_bytes(1000000000, 'big') }}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "change a list": "{{ messages.append(1) }}",
    "change a message": "{{ messages[0].update({'a': 1}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as x %}",
    "syntax": "{{ 1 + }}",
    "unknown filter": "{{ 1 | nothing }}",
    "own exception": "{{ raise_exception('no') }}",
}

BOUNDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
sys.path.insert(0, sys.argv[1])
from test_sandbox import BOMBS, UserError, render
from trivium.tokenizer import sandbox
sandbox.SECONDS = 3.0
for name, source in BOMBS.items():
    try:
        render(source)
    except UserError as error:
        assert "\\n" not in str(error) and "MemoryError" not in str(error), (name, error)
    else:
        raise SystemExit(f"{name} was not refused")
"""


def test_bombs_are_refused_in_one_gigabyte() -> None:
    """All of them in one process that may have 1 GiB of address space, none longer than a few seconds."""
    here = __file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", BOUNDED, here], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_control_without_fuel_the_bombs_go_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "FUEL", 10**15)
    assert len(render("{% set x = 'a' * 200000000 %}{{ x | length }}")) == 9
    monkeypatch.undo()
    with pytest.raises(UserError, match="makes more than"):
        render("{% set x = 'a' * 200000000 %}{{ x | length }}")


def test_outputs_up_to_the_limit_are_written() -> None:
    assert len(render("{{ 'a' * 10000000 }}")) == sandbox.LONGEST_OUTPUT
    with pytest.raises(UserError, match="writes more than"):
        render("{{ 'a' * 10000000 }}b")


def test_what_reaches_for_python_s_insides_finds_nothing() -> None:
    for source in (
        "{{ ''['__class__'] }}",
        "{{ self._TemplateReference__context }}",
        "{{ '{0.__class__}'.format(messages) }}",
    ):
        assert render(source) == ""


def test_what_templates_use() -> None:
    uses = {
        "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{% endfor %}": "1True1",
        "{% for i in [0, 1, 2] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}": "02",
        "{% for i in [0, 1, 2] %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}": "0",
        "{% generation %}a{{ 1 }}{% endgeneration %}": "a1",
        "{% set ns = namespace(a=1) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}": "4",
        "{{ messages[0].content[1:3] }}{{ messages[-1]['content'][::-1] }}": "elolleh",
        "{{ messages | map(attribute='role') | join(',') }}": "user",
        "{{ messages | selectattr('role', 'equalto', 'x') | list | length }}": "0",
        "{{ 'a b'.split()[-1] }}{{ ' x '.strip() }}{{ 'abc'.replace('b', '') }}{{ ','.join(['a', 'b']) }}": "bxaca,b",
        "{{ {'a': ['<é>', none, true]} | tojson }}": '{"a": ["<é>", null, true]}',
        "{{ {'a': 1} | tojson(indent=2) }}": '{\n  "a": 1\n}',
        "{{ '%s-%d' % ('a', 3) }}{{ '{}{x}'.format(1, x=2) }}{{ 'a' ~ 1 ~ none }}": "a-312a1None",
        "{{ missing }}{{ missing | default(100000) }}{{ missing is defined }}": "100000False",
        "{{ 'a\nb' | indent(2) }}{{ 1.25 | round(1) }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}": "a\n  b1.2310243",
        "{% macro m(x='d') %}[{{ x }}]{% endmacro %}{{ m() }}{{ m('e') }}": "[d][e]",
        "{% filter upper %}a{% endfilter %}{{ strftime_now('%Y') | length }}": "A4",
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ {'a': 1}.get('b', 2) }}": "a12",
    }
    for source, text in uses.items():
        assert render(source) == text
