"""Write a label volume on the grid of a NIfTI volume."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vesalius.data.decoders.limits import decoding
from vesalius.data.decoders.nifti import unpack
from vesalius.extras import require
from vesalius.files import replacing

COMPRESSION = 6
"""Level of gzip."""


def write_label_volume(path: Path, source: Path, labels: UInt8[np.ndarray, "n h w"]) -> None:
    """Write `labels`, one array (h, w) for each slice of `source`, as a compressed NIfTI volume (`.nii.gz`) of uint8.

    Affine, orientation, spacing, units and shape are those of the source: voxel (i, j, k) of both files is the same
    place. ImageError if the source cannot be read, OutputError if the file cannot be written, MissingExtraError without
    nibabel.
    """
    nibabel = require("nibabel", "nifti", "NIfTI files")
    with decoding(source), unpack(source) as file:
        kind = nibabel.Nifti2Image if file.read(8).endswith(b"n+2\0") else nibabel.Nifti1Image
        file.seek(0)
        header = kind.header_class.from_fileobj(file, check=False)
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"] = 0, 0
    header.set_intent("label")
    # a slice is volume[:, :, k].T (see decoders/nifti.py)
    voxels = labels.transpose(2, 1, 0).reshape(header.get_data_shape())
    # without an affine, nibabel keeps both transforms of the header and their codes
    written = kind(voxels, None, header)
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(written.to_bytes(), COMPRESSION, mtime=0))
