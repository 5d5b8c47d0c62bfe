"""Findings about polygons: number of points, coordinates, area and self-intersections."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from vesalius.checks.findings import sample_finding
from vesalius.masks import Size, describe_span, overshoot, polygon_error
from vesalius.names import count_of
from vesalius.types import Finding, Polygons, Sample

MAX_PAIRS = 20_000_000
"""Maximum number of edge pairs compared in one polygon (2 s); an outline of 1,000 points has about 10,000."""

CHUNK = 1_000_000
"""Number of edge pairs compared at once."""

Points = Float[np.ndarray, "n 2"]


def check_polygons(reference: Polygons, size: Size, sample: Sample, within: str) -> list[Finding]:
    """Findings about the polygons of one object; `within` names the object in messages."""
    findings = []
    for number, part in enumerate(reference.parts):
        at = f"{within}, polygon {number}" if len(reference.parts) > 1 else within
        found = _check_polygon(part, size)
        if found is not None:
            code, message = found
            findings.append(sample_finding(code, sample, message, within=at))
    return findings


def _check_polygon(part: tuple[float, ...], size: Size) -> tuple[str, str] | None:
    """(code, message) of the most severe finding about a polygon; None for a valid polygon."""
    if found := polygon_error(part, size):
        return found
    points = np.reshape(part, (-1, 2))
    if not np.any(_cross(points[1:] - points[0], _direction(points))):
        return "zero_area", f"its {len(points)} points lie on one line"
    crossings = count_crossings(points)
    if crossings is None:
        return ("self_intersection", f"has too many long edges ({len(points)}) to search for self-intersections")
    if crossings:
        lost = int(np.count_nonzero(_lost(points, size)))
        effect = f"the mask loses {count_of(lost, 'pixel')}" if lost else "no pixel is lost"
        return "self_intersection", f"the outline crosses itself {count_of(crossings, 'time')}; {effect}"
    if (beyond := overshoot(points, size)) > 0:
        return "border_overshoot", f"{describe_span(points, size)}, {beyond:.2g} px beyond its edge"
    return None


def count_crossings(points: Points) -> int | None:
    """Number of proper self-intersections of the closed outline; None for more than `MAX_PAIRS` pairs of edges.

    Only edges with overlapping y ranges are compared, because no others can intersect.
    """
    ends = np.roll(points, -1, axis=0)
    low, high = np.minimum(points[:, 1], ends[:, 1]), np.maximum(points[:, 1], ends[:, 1])
    order = np.argsort(low, kind="stable")
    points, ends, low, high = points[order], ends[order], low[order], high[order]
    others = np.searchsorted(low, high, side="right") - np.arange(len(points)) - 1
    total = int(others.sum())
    if total > MAX_PAIRS:
        return None
    found = 0
    starts = np.concatenate([[0], np.cumsum(others)])
    for begin in range(0, total, CHUNK):
        pairs = np.arange(begin, min(begin + CHUNK, total))
        first = np.searchsorted(starts, pairs, side="right") - 1
        second = first + 1 + pairs - starts[first]
        found += _count_pairs(points, ends, first, second)
    return found


def _count_pairs(points: Points, ends: Points, i: Int[np.ndarray, " p"], j: Int[np.ndarray, " p"]) -> int:
    """Number of pairs (i, j) of edges that intersect: the ends of each lie on opposite sides of the other."""
    a, b, c, d = points[i], ends[i], points[j], ends[j]
    apart = np.sign(_cross(b - a, c - a)) * np.sign(_cross(b - a, d - a)) < 0
    apart &= np.sign(_cross(d - c, a - c)) * np.sign(_cross(d - c, b - c)) < 0
    return int(np.count_nonzero(apart))


def _lost(points: Points, size: Size) -> np.ndarray:
    """Pixels that the even-odd rule leaves out although the outline encloses them: even winding number other than 0.

    Masks are filled by the even-odd rule; other programs may fill these pixels.
    """
    height, width = size
    steps = np.zeros((height, width + 1), dtype=np.int32)
    for (x, y), (x_end, y_end) in zip(points, np.roll(points, -1, axis=0), strict=True):
        low, high = np.clip(np.ceil(np.sort([y, y_end]) - 0.5), 0, height).astype(int)
        rows = np.arange(low, high)
        at = x + (rows + 0.5 - y) * (x_end - x) / (y_end - y) if len(rows) else rows
        steps[rows, np.clip(np.ceil(at - 0.5), 0, width).astype(int)] += 1 if y_end > y else -1
    winding = np.cumsum(steps, axis=1)[:, :-1]
    return (winding != 0) & (winding % 2 == 0)


def _direction(points: Points) -> Points:
    """Vector from the first point to the point farthest from it."""
    rays = points - points[0]
    return rays[np.argmax((rays**2).sum(axis=1))]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
