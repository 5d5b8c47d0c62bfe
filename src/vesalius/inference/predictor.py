"""Images and phrases in, predictions out: the one inference path, for files, evaluation and validation alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from vesalius.data.images import as_pixels
from vesalius.errors import SettingError
from vesalius.inference.official import predict_forward
from vesalius.inference.tiles import TileSettings, decode_tiles
from vesalius.models.answering import Answer, Drafts, SegPrompts, read_answer, verify_answer, write_answer
from vesalius.models.checkpoint import OpenedModel, find_model, open_model
from vesalius.models.processor import Batch
from vesalius.models.stored import fingerprint_model
from vesalius.types import Item, Prediction, Tile

log = logging.getLogger(__name__)

AnswerMode = Literal["verify", "generate", "force"]
MAX_NEW_TOKENS = 64


def load_predictor(
    model: str | Path,
    *,
    answer: AnswerMode = "verify",
    threshold: float | None = None,
    tiles: TileSettings | None = None,
    batch: int = 4,
    device: str | None = None,
) -> Predictor:
    """Open MODEL (a bundle, a run, an official folder, or `tiny`) for prediction: float32 on a CPU, bfloat16 on a GPU.

    Without `threshold` the bundle's own is used; without `device` a GPU if there is one.
    """
    folder = find_model(model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    opened = open_model(folder, device, dtype)
    return Predictor(
        opened,
        answer=answer,
        threshold=threshold,
        tiles=tiles,
        batch=batch,
        name=str(model),
        fingerprint=fingerprint_model(folder),
    )


class Predictor:
    """A model ready to predict.

    `answer`: `generate` lets the model write its answer, token by token, which may hold no [SEG]; `verify` gives the
    same answer sooner (`models/answering.py`); `force` gives it the template's answer and reads the [SEG] in it, so
    that every question gets a mask. With `tiles` masks come from windows of the image (`inference/tiles.py`).
    """

    def __init__(
        self,
        opened: OpenedModel,
        *,
        answer: AnswerMode = "verify",
        threshold: float | None = None,
        tiles: TileSettings | None = None,
        batch: int = 4,
        name: str = "",
        fingerprint: str | None = None,
    ) -> None:
        if batch < 1:
            raise SettingError(f"batch must be at least 1; got {batch}")
        if threshold is not None and not 0 < threshold < 1:
            raise SettingError(f"the threshold must lie between 0 and 1; got {threshold}")
        self.model = opened.model
        self.processor = opened.processor
        self.bundle_card = opened.card
        self.answer = answer
        self.threshold = opened.card.threshold if threshold is None else threshold
        self.tiles = tiles
        self.batch = batch
        self.name = name or opened.card.spec.name
        self.fingerprint = fingerprint
        self.drafts = Drafts(self.processor.template_answer())
        """Answers of this run, from which the next is guessed."""

    @property
    def card(self) -> dict[str, Any]:
        """What reports say of the model."""
        card = self.bundle_card
        return {"name": self.name, "kind": card.kind, "fingerprint": self.fingerprint, "step": card.step}

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides the numbers, for reports."""
        parameter = next(self.model.parameters())
        where = {"device": str(parameter.device), "dtype": str(parameter.dtype).removeprefix("torch.")}
        tiles = {} if self.tiles is None else {"tiles": self.tiles.model_dump()}
        return {"answer": self.answer, **tiles, **where, **self.processor.settings}

    @property
    def training_images(self) -> tuple[str, ...] | None:
        """SHA-256 of the pixels of each image that the weights were trained on; None where nobody knows."""
        return self.bundle_card.training_images

    @property
    def training_looks(self) -> tuple[str, ...]:
        """Perceptual hash of each of them."""
        return self.bundle_card.training_looks

    @property
    def tuning_images(self) -> tuple[str, ...]:
        """SHA-256 of the pixels of each image that the threshold was found on."""
        return self.bundle_card.tuning_images if self.threshold == self.bundle_card.threshold else ()

    @property
    def threshold_origin(self) -> dict[str, Any]:
        """Where the threshold comes from, for reports."""
        if self.threshold != self.bundle_card.threshold:
            return {"how": "given"}
        return self.bundle_card.threshold_origin.model_dump(exclude_none=True)

    def __call__(self, image: str | Path | Image.Image | np.ndarray, prompt: str) -> Prediction:
        """The prediction for one phrase on one image: a path, a PIL image or a uint8 array (h, w, 3) or (h, w)."""
        name = Path(image).stem if isinstance(image, str | Path) else "image"
        return self.predict([Item(name, as_pixels(image)[None], (prompt,))])[0]

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """One prediction for each (item, prompt), in order; masks that the items may hold are not looked at."""
        predictions: list[Prediction] = []
        for start in range(0, len(items), self.batch):
            unseen = [replace(item, masks=None) for item in items[start : start + self.batch]]
            predictions.extend(self._predict_batch(unseen))
        return predictions

    def predict_forward(self, *asked: Any, **more: Any) -> dict[str, Any]:
        """The official interface: `image` or `video`, `text`, `past_text`, `mask_prompts`; and `official`.

        Gives `prediction`, the answer with its special tokens, and `prediction_masks`, for each [SEG] in it a bool
        (frames, h, w); see `inference/official.py`.
        """
        return predict_forward(self, *asked, **more)

    @torch.inference_mode()
    def _predict_batch(self, items: Sequence[Item]) -> Iterator[Prediction]:
        parameter = next(self.model.parameters())
        batch = self.processor(items, answered=self.answer == "force").to(parameter.device, parameter.dtype)
        answer = self._answer(batch)
        if self.tiles is None:
            masks = self.model.decode(batch.g_pixel_values, answer.seg)
            return self._to_predictions(items, answer, masks.logits, masks.scores, {})
        tiles, logits, scores = self._decode_tiles(items, answer.seg)
        return self._to_predictions(items, answer, logits, scores, tiles)

    def _decode_tiles(
        self, items: Sequence[Item], seg: SegPrompts
    ) -> tuple[dict[int, list[Tile]], torch.Tensor, torch.Tensor]:
        """Image -> its tiles with the maps of all its [SEG]; empty logits (m, 0, 0); scores (m,)."""
        assert self.tiles is not None
        scores = seg.embedding.new_zeros(len(seg.row))
        tiles = {}
        for index in seg.image.unique().tolist():
            mine = seg.image == index
            tiles[index], scores[mine] = decode_tiles(
                self.model,
                self.processor,
                items[index].frames[0],
                seg.embedding[mine],
                self.tiles,
                self.batch,
            )
        return tiles, scores.new_zeros(len(scores), 0, 0), scores

    def _answer(self, batch: Batch) -> Answer:
        stop_id = self.processor.stop_id
        match self.answer:
            case "verify":
                return verify_answer(self.model, batch, self.drafts, stop_id, MAX_NEW_TOKENS)
            case "generate":
                return write_answer(self.model, batch, stop_id, MAX_NEW_TOKENS)
            case "force":
                return read_answer(self.model, batch)

    def _to_predictions(
        self,
        items: Sequence[Item],
        answer: Answer,
        logits: torch.Tensor,
        scores: torch.Tensor,
        tiles: dict[int, list[Tile]],
    ) -> Iterator[Prediction]:
        maps, ious = logits.float().cpu().numpy(), scores.float().cpu().numpy()
        row_of_mask, image_of_mask = answer.seg.row.cpu().numpy(), answer.seg.image.cpu().numpy()
        says_seg = answer.says_seg.tolist()
        questions = [(i, item, prompt) for i, item in enumerate(items) for prompt in item.prompts]
        cut = sum(self.processor.stop_id not in ids for ids in answer.ids)
        if cut:
            log.warning("%d of %d answers were cut after %d tokens", cut, len(questions), MAX_NEW_TOKENS)
        for row, (image, item, prompt) in enumerate(questions):
            mine = row_of_mask == row
            among = mine[image_of_mask == image]  # tiles hold the maps of one image only
            shown = tiles.get(image, ()) if mine.any() else ()
            yield Prediction(
                id=item.id,
                prompt=prompt,
                status="ok" if mine.any() else "no_seg",
                size=item.size,
                logits=maps[mine],
                input_size=self.processor.spec.sam_size,
                scores=tuple(ious[mine].tolist()),
                text=self.processor.text(answer.ids[row]),
                says_seg=says_seg[row],
                answered=answer.origins[row],
                tiles=tuple(replace(tile, logits=tile.logits[among]) for tile in shown),
                threshold=self.threshold,
            )
