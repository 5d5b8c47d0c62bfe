"""DICOM segmentations in a prediction folder: one file per source file, with one segment per prompt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vesalius.data.decoders import dicom_image as dicom
from vesalius.data.decoders import frame_files
from vesalius.data.images import frame_id
from vesalius.data.writers.dicom_seg import check_labels, check_source, write_segmentation
from vesalius.errors import SettingError
from vesalius.masks import Rle
from vesalius.names import result_stems, slug
from vesalius.types import Sample


class SegmentationFolder:
    """The folder `dicom/` of a prediction folder; holds masks as RLE until all frames of their source file are done.

    Failed frames are left out, and the image comment lists them. If all frames of a source file failed, it gets no
    segmentation.
    """

    def __init__(self, out: Path, samples: Sequence[Sample], prompts: Sequence[str], card: dict[str, Any]) -> None:
        """Check all source files.

        SettingError for a file that is not DICOM, for two segmentations with the same file name, and for a prompt that
        is not a valid label; ImageError for a file that a segmentation cannot reference.
        """
        check_labels(prompts)
        self.out = out
        self.prompts = tuple(prompts)
        self.card = card
        self.stems = _name_files(samples)
        for path in self.stems:
            check_source(path)
        self._missing = Counter(sample.image for sample in samples for _ in prompts)
        self._masks: dict[Path, dict[str, dict[int, Rle]]] = defaultdict(lambda: {name: {} for name in self.prompts})
        self._failed: dict[Path, set[int]] = defaultdict(set)

    def add(self, sample: Sample, prompt: str, mask: Rle | None) -> dict[str, str]:
        """Add one mask (None if it failed), and write the segmentation after the last mask of its source file.

        Returns the path of the segmentation under the key `dicom`; empty for a failed mask.
        """
        frame = sample.frame or 0
        if mask is None:
            self._failed[sample.image].add(frame)
        else:
            self._masks[sample.image][prompt][frame] = mask
        self._missing[sample.image] -= 1
        name = f"dicom/{self.stems[sample.image]}.dcm"
        if not self._missing[sample.image]:
            self._write(sample.image, self.out / name)
        return {} if mask is None else {"dicom": name}

    def _write(self, source: Path, path: Path) -> None:
        masks, failed = self._masks.pop(source, None), self._failed.pop(source, set())
        if masks is None:
            return
        predicted = set.union(*(set(frames) for frames in masks.values())) - failed
        write_segmentation(
            path,
            source,
            masks,
            series_description=f"Vesalius {str(self.card['fingerprint'])[:16]}",
            algorithm=slug(str(self.card["name"])),
            unanswered=sorted(set(range(dicom.count_frames(source))) - predicted),
        )


def _name_files(samples: Sequence[Sample]) -> dict[Path, str]:
    """Source file -> stem of its segmentation file: the sample id without the frame."""
    found: dict[Path, str] = {}
    for sample in samples:
        if sample.image in found:
            continue
        if frame_files.kind_of(sample.image) is not frame_files.KINDS["dicom"]:
            raise SettingError(
                f"--save dicom: {sample.image} is not a DICOM image; give DICOM files only, or leave dicom out",
                code="conflicting_settings",
                path=sample.image,
                field="save",
            )
        name = sample.id if sample.frame is None else sample.id.removesuffix(frame_id("", sample.frame))
        found[sample.image] = result_stems(name, ["dicom"])[0]
    for stem, n in Counter(found.values()).items():
        if n > 1:
            raise SettingError(
                f"--save dicom: {n} files would be written as {stem}.dcm; pass their parent folder instead",
                code="duplicate_id",
                field="save",
            )
    return found
