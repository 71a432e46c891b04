"""A report as blocks, written as Markdown and as one self-contained HTML page; tables also as LaTeX and as text."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
td { white-space: nowrap; } td.left { white-space: normal; }
th { border-bottom: 2px solid #888; } th.left, td.left { text-align: left; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; white-space: pre-wrap; }
.scroll { overflow-x: auto; }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Picture:
    """A PNG in the report's folder."""

    file: Path
    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `left` columns are words, the others numbers."""

    header: list[str]
    rows: list[list[str]]
    left: int = 1

    def format(self, style: str) -> str:
        """The table as one of tabulate's formats: simple, pipe, latex_booktabs."""
        align = ["left" if place < self.left else "right" for place in range(len(self.header))]
        return tabulate(
            self.rows, self.header, tablefmt=style, colalign=align if self.rows else None, disable_numparse=True
        )


def to_markdown(blocks: list) -> str:
    """The blocks as Markdown; pictures are links to the files beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Picture):
        return f"![{block.text}]({block.file.name})"
    if isinstance(block, Code):
        return f"```\n{block.text}\n```"
    if isinstance(block, Table):
        rows = [[cell.replace("|", "\\|") for cell in row] for row in block.rows]
        return Table(block.header, rows, block.left).format("pipe")
    return block.text


def to_html(blocks: list) -> str:
    """The blocks as one page that needs no other file: pictures stand in it."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    body = "\n".join(_html(block) for block in blocks)
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body)


def _html(block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.file.read_bytes()).decode()
        text = html.escape(block.text)
        return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Table):
        head = _html_row(block.header, "th", block.left)
        rows = "\n".join(_html_row(row, "td", block.left) for row in block.rows)
        return f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    return f"<p>{html.escape(block.text)}</p>"


def _html_row(cells: list[str], tag: str, left: int) -> str:
    kinds = [' class="left"' if place < left else "" for place in range(len(cells))]
    shown = (f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
    return f"<tr>{''.join(shown)}</tr>"


def to_latex(tables: list[Table]) -> str:
    """The tables for a paper, with \\usepackage{booktabs}."""
    parts = [table.format("latex_booktabs") for table in tables]
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(parts) + "\n"
