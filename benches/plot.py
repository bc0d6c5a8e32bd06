"""Figures as SVG plots, with logarithmic axes of milliseconds. Pure."""

import html
import math

LEAST_MS = 0.01
OURS, PEER, SECOND, THIRD = "#06c", "#c60", "#393", "#909"
PEERS = ("bare ", "bubblewrap", "`docker ")
# Where the bars begin, with room for the longest name of a row, and end.
BARS, BARS_END = 470, 900


class Axis:
    """Places values between the powers of ten around them on a line from `begin` to `end`."""

    def __init__(self, values, begin, end):
        powers = [math.log10(max(value, LEAST_MS)) for value in values]
        self.low, self.high = math.floor(min(powers)), max(math.ceil(max(powers)), math.floor(min(powers)) + 1)
        self.begin, self.end = begin, end

    def at(self, value):
        share = (math.log10(max(value, LEAST_MS)) - self.low) / (self.high - self.low)
        return round(self.begin + share * (self.end - self.begin), 1)

    def marks(self):
        return [10**power for power in range(self.low, self.high + 1)]


def document(width, height, parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])


def text(x, y, words, anchor="start", colour="#000"):
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{html.escape(words)}</text>'


def line(x1, y1, x2, y2, colour="#ccc", width=1):
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="{width}"/>'


def bars(timings):
    """A bar for the p50 of each row of the bench, back to back where it was measured so, and a thin line on to its p99."""
    rows = [(row["name"], row.get("back_to_back") or row.get("spaced")) for row in timings]
    rows = [(name, figures) for name, figures in rows if figures]
    if not rows:
        return document(900, 40, [text(8, 24, "nothing was measured")])
    across, height = Axis([value for _, row in rows for value in (row["p50_ms"], row["p99_ms"])], BARS, BARS_END), 18 * len(rows) + 60
    parts = [text(8, 20, "p50 (bar) and p99 (line), milliseconds")]
    parts += [text(BARS, 20, "CodeBeaker", colour=OURS), text(BARS + 90, 20, "peers", colour=PEER)]
    for mark in across.marks():
        parts += [line(across.at(mark), 30, across.at(mark), height - 25), text(across.at(mark), height - 8, f"{mark:g}", "middle")]
    for number, (name, figures) in enumerate(rows):
        y, colour = 34 + 18 * number, PEER if name.startswith(PEERS) else OURS
        begin, p50, p99 = across.begin, across.at(figures["p50_ms"]), across.at(figures["p99_ms"])
        parts += [
            text(BARS - 8, y + 11, name.replace("`", ""), "end"),
            f'<rect x="{begin}" y="{y}" width="{max(p50 - begin, 1):.1f}" height="12" fill="{colour}"/>',
            line(p50, y + 6, p99, y + 6, colour, 2),
        ]
    return document(BARS_END + 40, height, parts)


def growth(rows):
    """Lines over the number of sessions: a session made, the list of all, a command, a sweep."""
    series = [
        ("session.create, p50", OURS, [row["create"]["p50_ms"] for row in rows]),
        ("session.list of all", PEER, [row["list_ms"] for row in rows]),
        ("a command, p50", SECOND, [row["command_ms"] for row in rows]),
        ("a sweep", THIRD, [row["sweep_ms"] for row in rows]),
    ]
    sessions = [row["sessions"] for row in rows]
    across = Axis(sessions, 60, 610)
    up = Axis([value for _, _, values in series for value in values], 290, 60)
    parts = [text(8, 20, "milliseconds over the number of sessions")]
    for mark in up.marks():
        parts += [line(60, up.at(mark), 610, up.at(mark)), text(54, up.at(mark) + 4, f"{mark:g}", "end")]
    parts += [text(across.at(count), 310, f"{count:,}", "middle") for count in sessions]
    for number, (name, colour, values) in enumerate(series):
        points = " ".join(f"{across.at(count)},{up.at(value)}" for count, value in zip(sessions, values))
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
            text(60 + 145 * number, 42, name, colour=colour),
        ]
    return document(640, 325, parts)
