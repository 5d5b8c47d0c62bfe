"""Convert rectangles and ellipses of annotation tools to polygons; angles are in degrees, clockwise on the screen."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from vesalius.masks import Size

ELLIPSE_POINTS = 128

Points = Float[np.ndarray, "n 2"]


def rectangle(x: float, y: float, width: float, height: float) -> Points:
    """The corners of an upright rectangle with the first corner (x, y)."""
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], dtype=float)


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    """A polygon with the area of the upright ellipse around (x, y); its outline deviates by 0.02 % of a radius."""
    step = 2 * math.pi / ELLIPSE_POINTS
    angles = np.arange(ELLIPSE_POINTS) * step
    grown = math.sqrt(step / math.sin(step))
    return np.stack([x + radius_x * grown * np.cos(angles), y + radius_y * grown * np.sin(angles)], axis=1)


def rotate(points: Points, angle: float, x: float, y: float) -> Points:
    """The points, rotated around (x, y)."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (points - (x, y)) @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y)


def clip(points: Points, size: Size) -> Points:
    """A convex polygon, clipped to an image of `size`; unchanged if its center is outside the image.

    A shape with its center outside was probably drawn on another image, which the later check of coordinates reports.
    Source: I. Sutherland and G. Hodgman 1974, Reentrant polygon clipping.
    """
    height, width = size
    if not (np.all(points.mean(axis=0) >= 0) and np.all(points.mean(axis=0) <= (width, height))):
        return points
    for axis, side in ((0, width), (1, height)):
        points = _clip_edge(points, points[:, axis])
        points = _clip_edge(points, side - points[:, axis])
    return points


def _clip_edge(points: Points, depth: Float[np.ndarray, " n"]) -> Points:
    """The part of a convex polygon on the inner side of an edge; `depth` is the signed distance of each point to it."""
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
