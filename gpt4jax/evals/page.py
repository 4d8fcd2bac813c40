"""Pages of HTML with tables and plots in them."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

INK, OURS, FAINT = "#3b3b3b", "#1a8f5a", "#9a9a9a"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62em; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2.2em; border-top: 1px solid #ddd; padding-top: 1em; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .25em .9em .25em 0; text-align: right; }
td, th { white-space: nowrap; }
th { font-weight: 600; border-bottom: 1px solid #999; vertical-align: bottom; }
td:first-child, th:first-child { text-align: left; }
.meaning td:last-child { text-align: left; white-space: normal; min-width: 16em; color: #666; }
tr:nth-child(even) td { background: #f6f6f6; } .note { color: #666; } img { max-width: 100%; }
.wide { overflow-x: auto; }
"""


def document(title: str, parts: Iterable[str], style: str = "") -> str:
    """A page of parts that are HTML, with more style than the common one."""
    head = f'<meta charset="utf-8"><title>{text(title)}</title><style>{_STYLE}{style}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def text(value: object) -> str:
    """Whatever it is, as text of a page."""
    return html.escape(str(value))


def table(header: Sequence[str], rows: Iterable[Sequence[object]], style: str = "") -> str:
    """A table; the first column is aligned left."""
    cells = lambda kind, row: "".join(f"<{kind}>{text(cell)}</{kind}>" for cell in row)  # noqa: E731
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide {style}"><table><tr>{cells("th", header)}</tr>{body}</table></div>'


def percent(value: float | None) -> str:
    """A share in percent; None: nothing."""
    return "" if value is None else f"{100 * value:.1f}"


def interval(one: Mapping[str, Any]) -> str:
    """The interval of an estimate, in percent; nothing where it has none."""
    return "" if one["low"] is None else f"{percent(one['low'])} to {percent(one['high'])}"


def picture(figure: Figure) -> str:
    """A figure, which is closed then."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    plt.close(figure)
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"></p>'


def axes(width: float, height: float, panels: int = 0) -> tuple[Figure, Any]:
    """A figure of so many inches with one pair of axes, or with an array of them beside each other."""
    figure, found = plt.subplots(1, panels or 1, figsize=(width, height), layout="constrained", squeeze=False)
    for one in found[0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, found[0] if panels else found[0, 0]
