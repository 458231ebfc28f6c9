"""A timeline as a picture: a track per lane, and as many of its flights as can be told apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 1400, 170, 24, 56, 46, 30
FLIGHTS = 6
"""How many of the busiest track's spans the picture shows."""
ROW_TRACKS = ("admission", "decode", "queue", "encode")
COLORS = {"launch": "#8a8f98", "copy": "#5b8def", "fusion": "#c678dd", "graph": "#e5a33c"}
MEMBER_COLORS = ("#2f9e63", "#d9573f", "#2b9ab8", "#b0892b", "#7a5cc2", "#c2527f")
INK, PAPER, GRID = "#24292f", "#ffffff", "#e3e6ea"

Event = Mapping[str, Any]


def draw_timeline(trace: Mapping[str, Sequence[Event]], path: Path) -> None:
    """Draw a Chrome trace, as `EnsembleAdminService.CaptureTimeline` gives it, to a PNG; raises ValueError if nothing flew."""
    names = {event["tid"]: event["args"]["name"] for event in trace["traceEvents"] if event["name"] == "thread_name"}
    bars = [{**event, "track": names[event["tid"]]} for event in trace["traceEvents"] if event["ph"] == "X"]
    if not bars:
        raise ValueError("nothing flew while the timeline was captured; there is nothing to draw")
    began, ended = _find_stretch(bars)
    bars += _pair_rows(trace["traceEvents"], names)
    shown = [bar for bar in bars if bar["ts"] + bar["dur"] >= began and bar["ts"] <= ended]
    tracks = sorted({bar["track"] for bar in shown}, key=_order)
    image = Image.new("RGB", (WIDTH, TOP + ROW * len(tracks) + 40), PAPER)
    canvas = ImageDraw.Draw(image)
    scale = (WIDTH - LEFT - RIGHT) / (ended - began)
    _draw_axis(canvas, began, ended, scale, image.height - 34)
    members = [track for track in tracks if track.startswith("member ")]
    for number, track in enumerate(tracks):
        top = TOP + ROW * number
        canvas.text((14, top + 6), track.removeprefix("member "), INK, _font(17))
        color = MEMBER_COLORS[members.index(track) % len(MEMBER_COLORS)] if track in members else COLORS.get(track, "#b8bec6")
        for bar in (bar for bar in shown if bar["track"] == track):
            left = LEFT + max(0.0, bar["ts"] - began) * scale
            right = LEFT + min(ended - began, bar["ts"] + bar["dur"] - began) * scale
            thin = 8 if track in ROW_TRACKS else 0  # many rows lie over each other there
            canvas.rectangle((left, top + thin, max(left + 1, right - 1), top + BAR - thin), fill=color)
            label = f"{bar['dur'] / 1000:.1f} ms"
            if not thin and right - left > canvas.textlength(label, _font(14)) + 8:
                canvas.text((left + 5, top + 6), label, PAPER, _font(14))
    rows = max((bar["args"].get("rows", 0) for bar in shown), default=0)
    canvas.text((14, 12), f"{(ended - began) / 1000:.1f} ms of a running server; flights of up to {rows} rows", INK, _font(20))
    image.save(path)


def _find_stretch(bars: Sequence[Event]) -> tuple[float, float]:
    """Find a stretch in the middle in which the members fly some times, in microseconds."""
    members = sorted((bar for bar in bars if bar["track"].startswith(("member ", "graph"))), key=lambda bar: bar["ts"]) or list(
        bars
    )
    middle = len(members) // 2
    picked = members[max(0, middle - FLIGHTS) : middle + FLIGHTS]
    began, ended = picked[0]["ts"], max(bar["ts"] + bar["dur"] for bar in picked)
    margin = 0.03 * (ended - began) + 1
    return began - margin, ended + margin


def _pair_rows(events: Sequence[Event], names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Put the beginnings and ends of the rows' spans together."""
    ends = {(event["cat"], event["id"]): event["ts"] for event in events if event["ph"] == "e"}
    return [
        {**event, "track": names[event["tid"]], "dur": ends[event["cat"], event["id"]] - event["ts"]}
        for event in events
        if event["ph"] == "b"
    ]


def _order(track: str) -> tuple[int, str]:
    places = ("admission", "decode", "queue", "launch", "copy", "graph", "member", "fusion", "encode")
    return places.index(track.split()[0]) if track.split()[0] in places else len(places), track


def _draw_axis(canvas: ImageDraw.ImageDraw, began: float, ended: float, scale: float, bottom: int) -> None:
    step = next(
        step for step in (10.0**power * digit for power in range(0, 9) for digit in (1, 2, 5)) if (ended - began) / step <= 12
    )
    for number in range(int((ended - began) / step) + 1):
        x = LEFT + number * step * scale
        canvas.line((x, TOP - 8, x, bottom), fill=GRID)
        canvas.text((x + 3, bottom + 4), f"{number * step / 1000:g} ms", "#6a737d", _font(13))


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
