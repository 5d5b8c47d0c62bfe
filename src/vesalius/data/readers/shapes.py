"""Rectangles and ellipses of annotation tools as polygons. Angles are in degrees, clockwise on the screen."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from vesalius.masks import Size

ELLIPSE_POINTS = 128

Points = Float[np.ndarray, "n 2"]


def rectangle(x: float, y: float, width: float, height: float) -> Points:
    """The corners of an upright rectangle whose first corner is (x, y)."""
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], dtype=float)


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    """A polygon around (x, y) with the area of the upright ellipse; its outline deviates by 0.02 % of a radius."""
    step = 2 * math.pi / ELLIPSE_POINTS
    angles = np.arange(ELLIPSE_POINTS) * step
    grown = math.sqrt(step / math.sin(step))
    return np.stack([x + radius_x * grown * np.cos(angles), y + radius_y * grown * np.sin(angles)], axis=1)


def turn(points: Points, angle: float, x: float, y: float) -> Points:
    """The points, rotated around (x, y)."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (points - (x, y)) @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y)


def clip(points: Points, size: Size) -> Points:
    """The part of a convex polygon that lies in an image of `size`; the whole polygon if its center lies outside.

    A shape that reaches over the border is meant to end there. A shape beside the image was drawn on another image,
    and a later check of its coordinates reports it.
    Source: I. Sutherland and G. Hodgman 1974, Reentrant polygon clipping.
    """
    height, width = size
    if not (np.all(points.mean(axis=0) >= 0) and np.all(points.mean(axis=0) <= (width, height))):
        return points
    for axis, border in ((0, width), (1, height)):
        points = _cut(points, points[:, axis])
        points = _cut(points, border - points[:, axis])
    return points


def _cut(points: Points, depth: Float[np.ndarray, " n"]) -> Points:
    """The part of a convex polygon with `depth` >= 0, which is the signed distance of each point to a border."""
    if np.all(depth >= 0):
        return points
    kept = []
    for i in range(len(points)):
        before, here = depth[i - 1], depth[i]
        if (before < 0) != (here < 0):
            kept.append(points[i - 1] + (points[i] - points[i - 1]) * (before / (before - here)))
        if here >= 0:
            kept.append(points[i])
    return np.array(kept).reshape(-1, 2)
