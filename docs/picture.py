#!/usr/bin/env python3
"""Draws text of a terminal as an SVG: docs/picture.py [COLUMNS] < text > docs/station.svg

The picture in README.md is made of real output. To make it again: start `make run`, type in a second terminal what
`make run` prints, copy the interesting lines of both (a line `…` marks what was left out) and give them to this script.
Lines longer than COLUMNS (138) wrap, as in a terminal.
"""

import re
import sys
from xml.sax.saxutils import escape

CELL, LINE, MARGIN, TITLE = 7.8, 18, 16, 30
BACK, BAR, TEXT, DIM = "#161b22", "#2b313a", "#d7dde4", "#8b949e"
COLOURS = {"INFO": "#7ee787", "WARN": "#f2cc60", "ERROR": "#ff7b72", "$": "#79c0ff"}
FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
LOG = re.compile(r"(\S+Z) \[(INFO|WARN|ERROR)\] ")


def spans(line):
    """Splits a line into (colour, text)."""
    if log := LOG.match(line):
        return [(DIM, log[1] + " "), (COLOURS[log[2]], f"[{log[2]}] "), (TEXT, line[log.end() :])]
    if line.startswith("$ "):
        return [(COLOURS["$"], "$ "), ("#ffffff", line[2:])]
    return [(DIM if line in ("…", "^C") or line.startswith("# ") or re.match(r"[A-Z]+  ", line) else TEXT, line)]


def wrapped(parts, columns):
    """Yields rows of at most that many columns; each row is a list of (column, colour, text)."""
    row, used = [], 0
    for colour, text in parts:
        while text:
            if used == columns:
                yield row
                row, used = [], 0
            piece, text = text[: columns - used], text[columns - used :]
            row.append((used, colour, piece))
            used += len(piece)
    yield row


def main():
    columns = int(sys.argv[1]) if len(sys.argv) > 1 else 138
    rows = [row for line in sys.stdin.read().splitlines() for row in wrapped(spans(line), columns)]
    width, height = round(columns * CELL + 2 * MARGIN), len(rows) * LINE + TITLE + 2 * MARGIN
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"', end="")
    print(f' font-family="{FONT}" font-size="13">')
    print(f'<rect width="{width}" height="{height}" rx="8" fill="{BACK}" stroke="{BAR}"/>')
    print(f'<path d="M0 {TITLE}V8a8 8 0 0 1 8-8h{width - 16}a8 8 0 0 1 8 8v{TITLE - 8}z" fill="{BAR}"/>')
    for index, colour in enumerate(("#ff5f57", "#febc2e", "#28c840")):
        print(f'<circle cx="{20 + 20 * index}" cy="{TITLE // 2}" r="6" fill="{colour}"/>')
    for number, row in enumerate(rows):
        y = TITLE + MARGIN + number * LINE + 13
        for column, colour, text in row:
            # One element a cell of a table, each of fixed length: columns stay columns in any font.
            for cell in re.finditer(r"\S+(?: \S+)*", text):
                x, length = MARGIN + (column + cell.start()) * CELL, len(cell[0]) * CELL
                print(f'<text x="{x:.1f}" y="{y}" textLength="{length:.1f}" fill="{colour}">{escape(cell[0])}</text>')
    print("</svg>")


if __name__ == "__main__":
    main()
