"""Image files of more than 8 bits that Pillow cannot write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Number of channels -> color type of PNG."""


def write_png16(path: Path, values: np.ndarray) -> Path:
    """A PNG of 16-bit values (h, w) or (h, w, c), with c = 2 (gray and alpha), 3 or 4."""
    height, width = values.shape[:2]
    color = COLOR_TYPES[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path
