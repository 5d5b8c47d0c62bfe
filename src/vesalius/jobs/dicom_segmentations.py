"""DICOM segmentations in a prediction folder: one file per source file, with one segment per prompt."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vesalius.data.decoders import dicom_image as dicom
from vesalius.data.writers.dicom_seg import check_labels, check_source, write_segmentation
from vesalius.errors import ImageError
from vesalius.jobs.source_files import name_sources
from vesalius.masks import Rle
from vesalius.names import slug
from vesalius.types import Sample


class SegmentationFolder:
    """The folder `dicom/` of a prediction folder; holds masks as RLE until all frames of their source file are done.

    Failed frames are left out, and the image comment lists them. If all frames of a source file failed, it gets no
    segmentation.
    """

    def __init__(self, out: Path, samples: Sequence[Sample], prompts: Sequence[str], card: dict[str, Any]) -> None:
        """Check all source files.

        SettingError for a file that is not DICOM, for two segmentations with the same file name, and for a prompt that
        is not a valid label.
        """
        check_labels(prompts)
        self.out = out
        self.prompts = tuple(prompts)
        self.card = card
        self.stems = name_sources(samples, "dicom", ".dcm", "DICOM image")
        self.refused = _check_sources(self.stems)
        """Source file that a segmentation cannot reference -> reason."""
        self._missing = Counter(sample.image for sample in samples for _ in prompts)
        self._masks: dict[Path, dict[str, dict[int, Rle]]] = defaultdict(lambda: {name: {} for name in self.prompts})
        self._failed: dict[Path, set[int]] = defaultdict(set)

    def add(self, sample: Sample, prompt: str, mask: Rle | None) -> dict[str, str]:
        """Add one mask (None if it failed), and write the segmentation after the last mask of its source file.

        Returns the path of the segmentation under the key `dicom`; empty for a failed mask. A file that cannot be
        referenced fails: `status` and `error` are returned.
        """
        if sample.image in self.refused and mask is not None:
            return {"status": "failed", "error": self.refused[sample.image]}
        if sample.image not in self.stems or sample.image in self.refused:
            return {}
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


def _check_sources(paths: Iterable[Path]) -> dict[Path, str]:
    refused = {}
    for path in paths:
        try:
            check_source(path)
        except ImageError as error:
            refused[path] = str(error)
    return refused
