"""Pictures of each validation: the same few answers each time, so that a run can be watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vesalius.files import replacing
from vesalius.types import Item, Prediction, Sample
from vesalius.visualization import WHITE, six_panels

WIDTH = 960
"""Pixels of six panels on a sheet."""
COLUMNS = 2


class Sheet:
    """Collects the answers to draw while they are scored; holds `count` small pictures, no image."""

    def __init__(self, samples: Sequence[Sample], count: int, step: int) -> None:
        """The samples are spread over the list, whose neighbors may be frames of one patient; each by its first phrase."""
        places = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int).tolist()
        self._wanted = {(samples[i].id, samples[i].prompts[0]): None for i in places}
        self._pictures: dict[tuple[str, str], Image.Image] = {}
        self._step = step

    def __call__(
        self, item: Item, prediction: Prediction, truth: np.ndarray, scores: Mapping[str, float | None]
    ) -> None:
        """Draw the answer, where it is one of those."""
        asked = item.id, prediction.prompt
        if asked not in self._wanted:
            return
        title = f"{item.id} · step {self._step}" + ("" if prediction.says_seg else " · would not say [SEG]")
        picture = six_panels(
            item.frames[0], truth, prediction.mask, title=title, prompt=asked[1], scores=scores
        )
        height = round(picture.height * WIDTH / picture.width)
        self._pictures[asked] = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)

    def picture(self) -> Image.Image | None:
        """All of them, two in a row; None where there are none."""
        drawn = [self._pictures[asked] for asked in self._wanted if asked in self._pictures]
        rows = [drawn[i : i + COLUMNS] for i in range(0, len(drawn), COLUMNS)]
        if not rows:
            return None
        heights = [max(picture.height for picture in row) for row in rows]
        sheet = Image.new("RGB", (WIDTH * len(rows[0]), sum(heights)), WHITE)
        for number, row in enumerate(rows):
            for column, picture in enumerate(row):
                sheet.paste(picture, (column * WIDTH, sum(heights[:number])))
        return sheet

    def write(self, folder: Path) -> Image.Image | None:
        """Write `step-000500.png` into the folder, and give the picture; nothing where there is nothing to draw."""
        sheet = self.picture()
        if sheet is not None:
            with replacing(folder / f"step-{self._step:06d}.png") as aside:
                sheet.save(aside, format="PNG", compress_level=3)  # half the time of 6, for few more bytes
        return sheet
