"""Label volumes in a prediction folder: one NIfTI file per source volume, with one value per prompt."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vesalius.data.writers.nifti_labels import write_label_volume
from vesalius.jobs.prediction_log import VOLUMES
from vesalius.jobs.source_files import name_sources
from vesalius.masks import Rle, decode_rle
from vesalius.types import Sample

log = logging.getLogger(__name__)


class LabelVolumes:
    """The folder `volumes/` of a prediction folder; holds masks as RLE until all slices of their volume are done.

    Value n is the n-th prompt, counted from 1. A volume with a failed slice gets no file, because 0 would mean that
    nothing is there.
    """

    def __init__(self, out: Path, samples: Sequence[Sample], prompts: Sequence[str]) -> None:
        """SettingError for a file that is not NIfTI, and for two volumes with the same file name."""
        self.out = out
        self.prompts = tuple(prompts)
        self.stems = name_sources(samples, "nifti", ".nii.gz", "NIfTI volume")
        self._slices = Counter(sample.image for sample in samples)
        self._missing = Counter(sample.image for sample in samples for _ in prompts)
        self._masks: dict[Path, list[tuple[int, int, Rle]]] = defaultdict(list)
        self._failed: Counter[Path] = Counter()

    def add(self, sample: Sample, prompt: str, mask: Rle | None) -> dict[str, str]:
        """Add the pixels of one prompt (None if it failed), and write the volume after the last ones; returns {}.

        The masks of the prompts do not overlap. OutputError if the volume cannot be written.
        """
        if sample.image not in self.stems:
            return {}
        if mask is None:
            self._failed[sample.image] += 1
        else:
            self._masks[sample.image].append((sample.frame or 0, self.prompts.index(prompt) + 1, mask))
        self._missing[sample.image] -= 1
        if not self._missing[sample.image]:
            self._write(sample.image)
        return {}

    def _write(self, source: Path) -> None:
        masks, failed = self._masks.pop(source, []), self._failed.pop(source, 0)
        if failed or not masks:
            log.warning("%s: gets no label volume, because %d of its predictions failed", source, failed)
            return
        height, width = masks[0][2]["size"]
        labels = np.zeros((self._slices[source], height, width), dtype=np.uint8)
        for index, value, mask in masks:
            labels[index][decode_rle(mask)] = value
        write_label_volume(self.out / VOLUMES / f"{self.stems[source]}.nii.gz", source, labels)
