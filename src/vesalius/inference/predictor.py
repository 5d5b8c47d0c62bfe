"""`Predictor`: the inference path of jobs, evaluation and validation, from images and prompts to predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, get_args

import torch

from vesalius.calls import check_kind, checked, describe
from vesalius.clicks import Click
from vesalius.errors import SettingError
from vesalius.inference.feature_cache import CacheSettings, FeatureCache
from vesalius.inference.loaded import LoadedSegmenter, device_settings
from vesalius.inference.refinement import (
    Decoded,
    apply_clicks,
    check_refinement,
    decode_clicks,
    empty_mask,
    maps_before,
)
from vesalius.inference.tiles import TileSettings, decode_tiles
from vesalius.inference.tta import check_phrases, check_whole_images, choose_views, decode_views, find_gain
from vesalius.mask_maps import NO_MAPS, LowRes, Maps, Tiled
from vesalius.models.batch import Batch
from vesalius.models.cards import Card
from vesalius.models.checkpoint import OpenedModel
from vesalius.models.cpu_parallel import decode_on_cores, map_on_cores
from vesalius.models.generation import Answer, DraftTable, force_answer, generate_answer, verify_answer
from vesalius.models.processor import PixelInputs
from vesalius.models.quantization import kind_of
from vesalius.models.sam2 import SegPrompts, encode_images
from vesalius.segmenter import AnswerMode, Usage
from vesalius.types import Item, Prediction

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 64
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""Messages of PyTorch's CPU allocator, which raises a plain RuntimeError when memory runs out."""


@dataclass(frozen=True)
class Preprocessed(Item):
    """An item with the model's pixel inputs."""

    inputs: PixelInputs = field(kw_only=True)


class Predictor(LoadedSegmenter):
    """Inference with a text-prompted model.

    `answer` selects how the language model answers (`AnswerMode`). `tiles` decodes masks in sliding windows
    (`inference/tiles.py`). `tta` adds the views for which `vesalius tune` measured a gain (`inference/tta.py`), with
    the threshold tuned for them. `cache` stores SAM 2's image embeddings on disk (`inference/feature_cache.py`).
    `batch_size` is halved each time memory runs out. `cleaning` post-processes masks (`cleaning.py`).
    """

    model_card: Card

    @checked
    def __init__(
        self,
        opened: OpenedModel,
        *,
        answer: AnswerMode = "verify",
        tiles: TileSettings | None = None,
        tta: bool = False,
        cache: CacheSettings | None = None,
        name: str = "",
        **settings: Any,
    ) -> None:
        """`settings`: `threshold`, `cleaning`, `batch_size` and `fingerprint` as for `LoadedSegmenter`."""
        check_kind(opened, OpenedModel, "opened", 'an opened model; load_predictor("tiny") opens a model by its name')
        if answer not in get_args(AnswerMode):
            message = f"answer is one of {', '.join(get_args(AnswerMode))}; got {describe(answer)}"
            raise SettingError(message, code="bad_value", field="answer")
        check_kind(tiles, TileSettings | None, "tiles", "TileSettings, from vesalius.inference.tiles")
        check_kind(cache, CacheSettings | None, "cache", "CacheSettings, from vesalius.inference.feature_cache")
        gain = find_gain(opened.card, tiles, name) if tta else None
        super().__init__(opened.card, name=name or opened.card.spec.name, gain=gain, **settings)
        self.model = opened.model
        self.processor = opened.processor
        self.answer: AnswerMode = answer
        self.views = () if gain is None else gain.views
        """Augmented views used in addition to the plain image."""
        self.tiles = tiles
        self.cache = None if cache is None else FeatureCache(cache, self.fingerprint)
        self.encode = encode_images if self.cache is None else self.cache.encode
        self._drafts = DraftTable(self.processor.template_answer())
        self._batch_halved = 0

    @property
    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"answer": self.answer}
        if self.tiles is not None:
            settings["tiles"] = self.tiles.model_dump()
        if self.views:
            settings["tta"] = list(self.views)
        if kind := kind_of(self.model.vlm):
            settings["quantization"] = kind
        return {**settings, **device_settings(self.model), **self.processor.settings}

    @property
    def usage(self) -> Usage:
        return Usage(self._batch_halved, {} if self.cache is None else dict(vars(self.cache.use)))

    def _predict_items(self, items: Sequence[Item]) -> list[Prediction]:
        predictions: list[Prediction] = []
        done = 0
        while done < len(items):
            some = items[done : done + self.batch_size]
            try:
                predictions += self._predict_batch(some)
            except (RuntimeError, MemoryError) as error:
                if len(some) == 1 or not _is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())
            else:
                done += len(some)
                continue
            # outside the except block, where the error no longer keeps the batch's tensors alive
            self._halve_batch_size(len(some), reason)
        return predictions

    def with_views(self, views: Sequence[str], prompts: Iterable[str]) -> tuple[Predictor, tuple[str, ...]]:
        """A copy that decodes `views` and stores the logits of each in `LowRes.views`, and its views in order.

        SettingError for no or an unknown view, a prompt that a view does not allow, and with tiles or cleaning.
        """
        check_whole_images(self.tiles)
        if self.cleaning is not None:
            raise SettingError(
                "views are compared on masks without post-processing; open the model without cleaning",
                code="conflicting_settings",
                field="cleaning",
            )
        tried = copy(self)
        tried.views = choose_views(views)
        check_phrases(prompts, tried.views)
        return tried, tried.views

    def check_prompts(self, prompts: Iterable[str]) -> list[str]:
        """As in `LoadedSegmenter`; also SettingError for prompts that name a side if flip is among the views."""
        given = list(prompts)
        check_phrases(given, self.views)
        return super().check_prompts(given)

    @checked
    def refine(self, prediction: Prediction, points: Sequence[Click]) -> Prediction:
        """A new prediction: the union of the prompt's objects, corrected by clicks; `prediction` is unchanged.

        `prediction` comes from `predictor(image, prompt)`, or from an earlier `refine`, whose clicks remain in force.
        `points` are ((x, y), True) in the structure and ((x, y), False) outside it, in pixels of the image. The mask has
        every positive pixel and no negative one; its one object has the status ok, even if nothing is left of it.
        Post-processing is applied before the clicks. SAM 2's point prompts are used where they are trained, with whole
        images and without test-time augmentation; otherwise the logits near the clicks are changed.

        SettingError for invalid points (`invalid_point`), for a failed prediction (`prediction_failed`), for one without
        image (`no_image`), and for a prediction without [SEG] if no click is positive (`bad_value`).
        """
        image, clicks = check_refinement(prediction, points)
        item = Item(prediction.id, image[None], (prediction.phrase or prediction.prompt,))
        decoded = self._decode_clicks(prediction, item, clicks)
        return apply_clicks(replace(prediction, cleaning=self.cleaning), image, clicks, decoded)

    @torch.inference_mode()
    def _decode_clicks(self, prediction: Prediction, item: Item, clicks: Sequence[Click]) -> Decoded:
        before = maps_before(prediction)
        # points prompt SAM 2 on the whole image, so maps of tiles and of averaged views are only changed near the clicks
        whole = self.tiles is None and not self.views
        if isinstance(before, LowRes) and whole and not self.model_card.has_random_points:
            parameter = next(self.model.parameters())
            batch = self.processor([item], answered=self.answer == "force").to(parameter.device, parameter.dtype)
            seg = self.answer_batch(batch).seg.embedding
            return decode_clicks(self.model, self.encode, batch.g_pixel_values[0], seg, clicks, before, item.size)
        if len(before):
            return before, ()
        forced = copy(self)
        forced.answer = "force"
        return empty_mask(forced._predict_batch([item])[0], prediction.threshold), ()

    def prepare(self, item: Item) -> Item:
        return Preprocessed(item.id, item.frames, item.prompts, inputs=self.processor.preprocess(item))

    def _halve_batch_size(self, images: int, reason: str) -> None:
        self.batch_size = images // 2
        self._batch_halved += 1
        log.warning(
            "memory ran out with %d images in a batch (%s); the batch size is now %d", images, reason, self.batch_size
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _predict_batch(self, items: Sequence[Item]) -> list[Prediction]:
        parameter = next(self.model.parameters())
        raw = [item for item in items if not isinstance(item, Preprocessed)]
        made = iter(map_on_cores(self.processor.preprocess, raw))
        inputs = [item.inputs if isinstance(item, Preprocessed) else next(made) for item in items]
        batch = self.processor(items, answered=self.answer == "force", inputs=inputs)
        batch = batch.to(parameter.device, parameter.dtype)
        answer = self.answer_batch(batch)
        maps, scores = self._decode(items, batch, answer.seg)
        return self._to_predictions(items, answer, maps, scores.float().cpu().tolist())

    def answer_batch(self, batch: Batch) -> Answer:
        """The model's answer to each row of the batch, in the answer mode `self.answer`."""
        stop_id = self.processor.stop_id
        match self.answer:
            case "verify":
                return verify_answer(self.model, batch, self._drafts, stop_id, MAX_NEW_TOKENS)
            case "generate":
                return generate_answer(self.model, batch, stop_id, MAX_NEW_TOKENS)
            case "force":
                return force_answer(self.model, batch)

    def _decode(self, items: Sequence[Item], batch: Batch, seg: SegPrompts) -> tuple[dict[int, Maps], torch.Tensor]:
        """Maps by batch row, for rows with [SEG], and the predicted IoU of each [SEG], float (m,)."""
        row_of_mask, side = seg.row.cpu().numpy(), self.processor.spec.sam_size
        rows = dict.fromkeys(row_of_mask.tolist())
        if self.tiles is not None:
            return self._decode_tiles(items, seg)
        decode = partial(decode_on_cores, partial(self.model.decode, encode=self.encode))
        if not self.views:
            masks = decode(batch.g_pixel_values, seg)
            logits = masks.logits.float().cpu().numpy()
            return {row: LowRes(logits[row_of_mask == row], side) for row in rows}, masks.scores
        averaged = decode_views(decode, batch.g_pixel_values, seg, self.views)
        return {row: averaged.of(row_of_mask == row, side) for row in rows}, averaged.scores

    def _decode_tiles(self, items: Sequence[Item], seg: SegPrompts) -> tuple[dict[int, Maps], torch.Tensor]:
        assert self.tiles is not None
        scores = seg.embedding.new_zeros(len(seg.row))
        maps: dict[int, Maps] = {}
        for index in seg.image.unique().tolist():
            mine = seg.image == index
            tiles, scores[mine] = decode_tiles(
                self.model,
                self.processor,
                items[index].frames[0],
                seg.embedding[mine],
                self.tiles,
                self.batch_size,
                self.encode,
            )
            rows = seg.row[mine].cpu().numpy()
            for row in dict.fromkeys(rows.tolist()):
                cut = tuple(replace(tile, logits=tile.logits[rows == row]) for tile in tiles)
                maps[row] = Tiled(cut, self.processor.spec.sam_size)
        return maps, scores

    def _to_predictions(
        self, items: Sequence[Item], answer: Answer, maps: dict[int, Maps], scores: list[float]
    ) -> list[Prediction]:
        rows = answer.seg.row.tolist()
        pairs = [(item, prompt) for item in items for prompt in item.prompts]
        if truncated := sum(self.processor.stop_id not in ids for ids in answer.ids):
            log.warning("%d of %d answers were truncated at %d tokens", truncated, len(pairs), MAX_NEW_TOKENS)
        return [
            replace(
                self.text_prediction(answer, row, prompt),
                id=item.id,
                status="ok" if row in maps else "no_seg",
                size=item.size,
                maps=maps.get(row, NO_MAPS),
                scores=tuple(score for at, score in zip(rows, scores, strict=True) if at == row),
            )
            for row, (item, prompt) in enumerate(pairs)
        ]

    def text_prediction(self, answer: Answer, row: int, prompt: str) -> Prediction:
        """Prediction with the text of one answer row; its id, size and masks are not set."""
        return Prediction(
            id="",
            prompt=prompt,
            status="no_seg",
            size=(0, 0),
            text=self.processor.text(answer.ids[row]),
            says_seg=bool(answer.says_seg[row]),
            answered=answer.origins[row],
            threshold=self.threshold,
            cleaning=self.cleaning,
        )


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error).lower() for words in OUT_OF_MEMORY)
