"""Small pieces of HTML, and the one door (`text`) through which anything that comes from a file enters the page.

The invariant its test checks: no text, however hostile, becomes markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from trivium.report import units
from trivium.report.run_data import Facts

# What no HTML text may hold: control characters other than tab and newline, and half surrogate pairs.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
MAX_CELL_CHARACTERS = 300


def text(value: str) -> str:
    """`value` as it may stand between tags or in a quoted attribute."""
    return html.escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", value.replace("\r\n", "\n")), quote=True)


def section(title: str, *bodies: str) -> str:
    """A titled part of the page."""
    content = "\n".join(body for body in bodies if body)
    return f"<section>\n<h2>{text(title)}</h2>\n{content}\n</section>"


def missing(reason: str) -> str:
    """What stands in place of a part that is left out."""
    return f'<p class="missing">{text(reason)}</p>'


def paragraph(content: str) -> str:
    """One paragraph of plain text."""
    return f"<p>{text(content)}</p>"


def columns(items: Iterable[str]) -> str:
    """Pieces side by side where the screen is wide enough."""
    return '<div class="columns">\n' + "\n".join(items) + "\n</div>"


def block(title: str, body: str) -> str:
    """A smaller titled piece."""
    return f"<div>\n<h3>{text(title)}</h3>\n{body}\n</div>"


def plot(title: str, svg: str, caption: str, *, phone_svg: str = "") -> str:
    """A titled plot with its figures said in words. `svg` is our own markup; `phone_svg` replaces it on phones."""
    drawing = svg
    if phone_svg:
        drawing = f'<div class="on-desk">{svg}</div>\n<div class="on-phone">{phone_svg}</div>'
    label = text(f"{title}. {caption}")
    return (
        f"<figure>\n<h3>{text(title)}</h3>\n"
        f'<div role="img" aria-label="{label}">{drawing}</div>\n'
        f"<figcaption>{text(caption)}</figcaption>\n</figure>"
    )


def table(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values (plain text both)."""
    body = "\n".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in rows)
    return f"<table>\n{body}\n</table>"


def listed(title: str, items: Sequence[str]) -> str:
    """A titled list of sentences."""
    points = "".join(f"<li>{text(item)}</li>\n" for item in items)
    return f"<h3>{text(title)}</h3>\n<ul>\n{points}</ul>"


def preformatted(content: str) -> str:
    """Text whose spaces and line ends count."""
    return f"<pre>{text(content)}</pre>"


def folded(title: str, body: str) -> str:
    """A piece that is closed until it is clicked."""
    return f"<details>\n<summary>{text(title)}</summary>\n{body}\n</details>"


def rows_of(facts: Facts, labels: Mapping[str, str], limit: int = 40) -> list[tuple[str, str]]:
    """Facts as table rows: those of `labels` first, in its order, then all others under their own names."""
    known = [key for key in labels if key in facts]
    others = [key for key in facts if key not in labels]
    rows = [(labels.get(key, _title(key)), shown(key, facts[key])) for key in known + others]
    return [(name[:MAX_CELL_CHARACTERS], value) for name, value in rows if value][:limit]


def _title(key: str) -> str:
    """A key as a label: `top_p` -> Top p."""
    spaced = key.replace("_", " ").strip()
    return spaced[:1].upper() + spaced[1:]


def shown(key: str, value: object) -> str:
    """One fact as text: the key says the unit ("" for nested values, which have no place in a table)."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int() | float() if key.endswith("bytes") and abs(value) < 1e18:
            return units.size(value)
        case int() if abs(value) < 10**18:
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
        case str():
            return value if len(value) <= MAX_CELL_CHARACTERS else value[:MAX_CELL_CHARACTERS] + " […]"
        case list() if value and all(isinstance(item, str | int | float) for item in value[:20]):
            return ", ".join(shown(key, item) for item in value[:20]) + (", …" if len(value) > 20 else "")
    return ""
