"""Draws a run's layers as an SVG: one bar each, on one scale with the irreducible cost."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from bench.figures import Run

PICTURE = Path("docs/pictures/where-the-time-goes.svg")
WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 860, 210, 110, 92, 34, 20


def draw(run: Run, path: Path) -> Path:
    """Write the picture. Raises ValueError where the run has no layers."""
    if not run.shares:
        raise ValueError("this run has no layers: it was not sampled")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg(run), encoding="utf-8")
    return path


def svg(run: Run) -> str:
    """The picture, one element a line."""
    total = sum(share.milliseconds for share in run.shares)
    irreducible = run.value("irreducible.cpu")
    longest = max(share.milliseconds for share in run.shares)
    scale = (WIDTH - LEFT - RIGHT) / max(longest, irreducible or 0.0)
    height = TOP + ROW * len(run.shares) + 40
    floor = "" if irreducible is None else f", {total / irreducible:.1f} times its irreducible cost"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        "<title>CPU of the CA/RA per certificate, by layer</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(24, 34, "Where the CA/RA's time goes", size=20, weight="600"),
        _text(24, 58, f"CPU per certificate: {total:.2f} ms{floor}", fill="#555555"),
    ]
    for index, share in enumerate(run.shares):
        y = TOP + ROW * index
        lines += [
            _text(LEFT - 12, y + 15, share.layer, anchor="end"),
            f'<rect x="{LEFT}" y="{y}" width="{max(1.0, share.milliseconds * scale):.1f}" height="{BAR}" rx="2" '
            f'fill="{"#2a9d8f" if share.layer == "token worker" else "#35608f"}"/>',
            _text(
                LEFT + share.milliseconds * scale + 8,
                y + 15,
                f"{share.milliseconds:.2f} ms, {share.milliseconds / total:.0%}",
                fill="#333333",
            ),
        ]
    if irreducible is not None:
        x, bottom = LEFT + irreducible * scale, height - 28
        lines += [
            f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="#c0392b" stroke-dasharray="4 4"/>',
            _text(x, bottom + 18, f"irreducible: {irreducible:.2f} ms", fill="#c0392b", anchor="middle"),
        ]
    return "\n".join([*lines, "</svg>", ""])


def _text(
    x: float, y: float, text: str, *, size: int = 14, weight: str = "400", fill: str = "#111111", anchor: str = "start"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
