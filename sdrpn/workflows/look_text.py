"""What a look found, and how a stream went, as lines."""

from __future__ import annotations

from collections.abc import Iterator

from sdrpn.workflows.look import FrameLook, Look, StreamFigures

__all__ = ["frame_lines", "stream_text"]


def stream_text(figures: StreamFigures) -> str:
    """A stream in one line."""
    counts = {
        "unchanged": figures.unchanged,
        "dropped": figures.dropped,
        "unreadable": figures.unreadable,
        "reconnected": figures.reconnects,
        "given up": len(figures.given_up),
        "not read to the end": len(figures.broken),
    }
    parts = [f"{figures.frames} frame{'' if figures.frames == 1 else 's'} in {figures.seconds:.1f} s"]
    if figures.p50_s is not None and figures.p95_s is not None:
        parts.append(f"{figures.fps:.1f} fps, p50 {1000 * figures.p50_s:.1f} ms, p95 {1000 * figures.p95_s:.1f} ms")
    return ", ".join([*parts, *(f"{count} {what}" for what, count in counts.items() if count)])


def frame_lines(found: FrameLook) -> Iterator[str]:
    """A line per question: its regions with their scores, or why there is none."""
    frame = found.frame
    when = "" if frame.time_s is None else f" {frame.time_s:.2f} s"
    for look in found.looks:
        yield f"{frame.source} {frame.index}{when}: {look.question}: {_regions(look)}"


def _regions(look: Look) -> str:
    found = [f"{region.score:.2f} at {','.join(map(str, region.xyxy_px))}" for region in look.boxes]
    return "; ".join(found) or f"nothing{_left_out(look)}"


def _left_out(look: Look) -> str:
    """Why regions that fired are not among the boxes, in brackets."""
    count = len(look.dropped)
    if not count:
        return ""
    reasons = ", ".join(dict.fromkeys(region.reason for region in look.dropped))
    return f" ({count} region{'' if count == 1 else 's'} left out: {reasons})"
