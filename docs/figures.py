#!/usr/bin/env python3
"""Draws figures of a run of `make bench` as an SVG: docs/figures.py < tests/bench/reference.json > docs/figures.svg

A row a figure, each with a scale of its own, as units differ: the Controller, the limit that it should keep as a line,
and the peer of a run with PEER. What a run has not measured has no bar.
"""

import json
import sys
from xml.sax.saxutils import escape

HOUR = "quiet hour, N=5, Podman on demand"
# What README.md shows: a label, and the name of the figure in the table.
ROWS = [
    ("Quiet, 5 microphones", None),
    ("CPU of the Controller", "quiet, N=5: CPU of the Controller"),
    ("memory of the Controller", "scale, N=5: resident memory"),
    ("CPU caused in Podman", "quiet, N=5: CPU caused in Podman's service"),
    ("CPU of Podman, five logs with one subscriber", "5 x 1 lines/s, one subscriber: CPU of Podman's service"),
    ("Quiet, 5 microphones, Podman ends when idle", None),
    ("time in which Podman is resident", f"{HOUR}: time in which its service is resident"),
    ("requests to Podman", f"{HOUR}: requests to Podman"),
    ("open connections to Podman", f"{HOUR}: open connections to Podman, on average"),
    ("CPU of Controller and Podman", f"{HOUR}: CPU of Controller and Podman"),
    ("the same with PostgreSQL and Redis", f"{HOUR}: CPU of all of it together"),
    ("Speed", None),
    ("start of the Controller → recorded", "start -> Recorder running, N=1"),
    ("connected → recorded, beyond half a tick and Podman", "plug -> running, median, beyond tick / 2 and Podman's own"),
    ("Recorder died → runs again, times Podman's own", "Recorder died -> running again, median, times Podman's own"),
    ("50 microphones at once, times Podman's own", "50 microphones at once, times Podman's own best, median of 5"),
    ("stopped by hand → noticed", "stopped by hand -> noticed, longest of 5"),
    ("the same without pid: host", "stopped by hand -> noticed, without pid: host, longest of 5"),
    ("Each further device", None),
    ("memory for a Recorder", "scale, each further Recorder: resident memory"),
    ("heartbeat for a Recorder", "scale, each further Recorder: heartbeat"),
    ("memory for a device not seen for two months", "scale, each device not seen for two months: resident memory"),
    ("heartbeat for a device not seen for two months", "scale, each device not seen for two months: heartbeat"),
    ("Program", None),
    ("size, stripped", "program, stripped"),
]
BACK, EDGE, TEXT, DIM = "#161b22", "#2b313a", "#d7dde4", "#8b949e"
OURS, PEER, LIMIT = "#7ee787", "#8b949e", "#f2cc60"
FONT = "system-ui, 'DejaVu Sans', sans-serif"
WIDTH, LEFT, BARS, MARGIN, BAR = 900, 400, 350, 18, 9


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def text(x, y, words, colour, size=13, anchor="start"):
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'


def row(y, label, figure):
    """Yields the elements of a figure."""
    yield text(LEFT - 12, y + 14, label, TEXT, anchor="end")
    # What varies by itself may have shrunk.
    values = [(value and max(value, 0), colour) for value, colour in ((figure["value"], OURS), (figure["peer"], PEER))]
    known = [value for value in (figure["value"], figure["peer"], figure["limit"]) if value is not None]
    scale = BARS / (max(known) or 1)
    end = LEFT
    for place, (value, colour) in enumerate(values):
        if value is not None:
            top, length = y + 2 + place * (BAR + 1), max(value * scale, 1)
            yield f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>'
            end = max(end, LEFT + length)
    if figure["limit"] is not None:
        x = LEFT + figure["limit"] * scale
        yield f'<path d="M{x:.1f} {y - 1}v{2 * BAR + 7}" stroke="{LIMIT}" stroke-width="2"/>'
        end = max(end, x)
    words = [number(value) for value, _ in values if value is not None]
    yield text(end + 8, y + 14, f'{" / ".join(words)} {figure["unit"]}'.strip(), TEXT, 12)


def main():
    run = json.load(sys.stdin)
    figures = {figure["figure"]: figure for figure in run["figures"]}
    body, y, heading = [], MARGIN + 52, None
    for label, name in ROWS:
        if name is None:
            heading = label
        elif name in figures and figures[name]["value"] is not None:
            if heading:
                y += 10
                body.append(text(MARGIN, y + 12, heading, "#ffffff", 14))
                y, heading = y + 22, None
            body += row(y, label, figures[name])
            y += 2 * BAR + 12
    height = y + MARGIN
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="{FONT}">')
    print(f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{BACK}" stroke="{EDGE}"/>')
    keys = [("Controller", OURS)]
    if any(figure["peer"] is not None for figure in figures.values()):
        keys.append(("Python Controller", PEER))
    x = MARGIN
    for words, colour in keys:
        print(f'<rect x="{x}" y="{MARGIN + 3}" width="22" height="{BAR}" rx="2" fill="{colour}"/>')
        print(text(x + 30, MARGIN + 12, words, TEXT))
        x += 60 + 8 * len(words)
    print(f'<path d="M{x + 11} {MARGIN - 1}v16" stroke="{LIMIT}" stroke-width="2"/>')
    print(text(x + 30, MARGIN + 12, "limit", TEXT))
    print(text(MARGIN, MARGIN + 36, f'measured on {run["machine"]}; each row has its own scale', DIM, 12))
    print("\n".join(body))
    print("</svg>")


if __name__ == "__main__":
    main()
