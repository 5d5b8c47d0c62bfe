"""Images and phrases in, predictions out: the one inference path, for files, evaluation and validation alike."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from vesalius.cleaning import CleanedPrediction, Cleaning
from vesalius.data.images import as_pixels
from vesalius.errors import SettingError
from vesalius.inference.baselines import Baseline, load_baseline
from vesalius.inference.feature_cache import CacheSettings, FeatureCache
from vesalius.inference.official import predict_forward
from vesalius.inference.plan import make_plan, place_of
from vesalius.inference.tiles import TileSettings, decode_tiles
from vesalius.inference.tta import (
    ViewedPrediction,
    check_phrases,
    check_whole_images,
    choose_views,
    decode_views,
    find_gain,
)
from vesalius.inference.video import FramePredictions, predict_video
from vesalius.models.batch import Batch
from vesalius.models.checkpoint import OpenedModel, open_model
from vesalius.models.cpu_parallel import decode_on_cores, map_on_cores
from vesalius.models.generation import Answer, DraftTable, force_answer, generate_answer, verify_answer
from vesalius.models.processor import PixelInputs
from vesalius.models.quantization import Quantized, kind_of
from vesalius.models.reference import resolve_model
from vesalius.models.segmenter import SegPrompts, encode_images
from vesalius.models.stored_model import fingerprint_model
from vesalius.types import Item, Prediction, Tile

log = logging.getLogger(__name__)

AnswerMode = Literal["verify", "generate", "force"]
MAX_NEW_TOKENS = 64
SHORTAGES = ("out of memory", "not enough memory", "can't allocate memory")


def load_predictor(
    model: str | Path,
    *,
    answer: AnswerMode = "verify",
    threshold: float | None = None,
    tiles: TileSettings | None = None,
    cleaning: Cleaning | None = None,
    batch: int = 4,
    tta: bool = False,
    cache: CacheSettings | None = None,
    device: str | None = None,
    gpus: str | None = None,
    quantized: Quantized | None = None,
) -> Predictor | Baseline:
    """Open MODEL (a bundle, a run, an official folder, or `tiny`) for prediction: float32 on a CPU, bfloat16 on a GPU.

    A U-Net and the filter `frangi` predict in float32, and have neither words nor a choice of how to be asked: `answer`
    does not matter to them, and SettingError refuses `tiles`, `tta`, `cache` and `gpus`.
    Without `threshold` the bundle's own is used; without `device` a GPU if there is one. `tiles`, `cleaning`,
    `batch`, `tta` and `cache` as for `Predictor`. `gpus` such as 2x24GiB spreads one model over GPUs as `vesalius plan` says.
    `quantized` turns the matrices of the vision-language half into 8 or 4 bits a value; needs the extra of that name.
    SettingError for a device that this machine does not have, or GPUs that do not hold the model.
    """
    ref = resolve_model(model)
    if ref.is_baseline:
        refused = {"tiles": tiles, "tta": tta, "cache": cache, "gpus": gpus, "quantized": quantized}
        for setting in (name for name, value in refused.items() if value):
            raise SettingError(f"{model}: {setting} is for text-prompted models; leave it out")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _check_device(device)
        return load_baseline(ref, threshold=threshold, cleaning=cleaning, batch=batch, device=device)
    if gpus is None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _check_device(device)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        opened = open_model(ref, device, dtype, quantized)
    else:
        if device is not None:
            raise SettingError(f"give a device ({device}) or gpus ({gpus}), not both")
        changes = [f"batch={batch}", *([f"quantize={quantized}"] if quantized else [])]
        opened = open_model(ref, *place_of(make_plan(ref, gpus, changes=changes)), quantized)
    return Predictor(
        opened,
        answer=answer,
        threshold=threshold,
        tiles=tiles,
        cleaning=cleaning,
        batch=batch,
        tta=tta,
        cache=cache,
        name=ref.name,
        fingerprint=fingerprint_model(ref),
    )


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(
            f"the device {device!r} cannot be used ({reason}); name one as cpu, cuda or cuda:1"
        ) from error


@dataclass(frozen=True)
class Preprocessed(Item):
    """An item whose image is ready for the model."""

    view: PixelInputs = field(kw_only=True)


class Predictor:
    """A model ready to predict.

    `answer`: `generate` lets the model write its answer, token by token, which may hold no [SEG]; `verify` gives the
    same answer sooner (`models/generation.py`); `force` gives it the template's answer and reads the [SEG] in it, so
    that every question gets a mask. With `tiles` masks come from windows of the image (`inference/tiles.py`). `cleaning`
    mends masks (`cleaning.py`). `batch` images go through the model together; where memory runs out, half
    as many from then on. `tta` shows the segmenter each image in the views that `vesalius tune` measured a gain of
    (`inference/tta.py`), with the threshold found for them. `cache` keeps what the segmenter's encoder sees
    (`inference/feature_cache.py`).
    """

    def __init__(
        self,
        opened: OpenedModel,
        *,
        answer: AnswerMode = "verify",
        threshold: float | None = None,
        tiles: TileSettings | None = None,
        cleaning: Cleaning | None = None,
        batch: int = 4,
        tta: bool = False,
        cache: CacheSettings | None = None,
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
        self.gain = find_gain(opened.card, tiles, name) if tta else None
        """What allows test-time augmentation; None without."""
        self.views = () if self.gain is None else self.gain.views
        own = opened.card.threshold if self.gain is None else self.gain.threshold
        self.threshold = own if threshold is None else threshold
        self.tiles = tiles
        self.cleaning = cleaning
        self.batch = batch
        self.times_halved = 0
        """How often `batch` was halved, as memory ran out."""
        self.name = name or opened.card.spec.name
        self.fingerprint = fingerprint
        self.cache = None if cache is None else FeatureCache(cache, fingerprint)
        self.encode = encode_images if self.cache is None else self.cache.encode
        self.drafts = DraftTable(self.processor.template_answer())
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
        more = {"tiles": self.tiles, "cleaning": self.cleaning}
        given: dict[str, Any] = {name: each.model_dump() for name, each in more.items() if each is not None}
        if self.views:
            given["tta"] = list(self.views)
        if kind := kind_of(self.model.vlm):
            given["quantized"] = kind
        return {"answer": self.answer, **given, **where, **self.processor.settings}

    @property
    def training_images(self) -> tuple[str, ...] | None:
        """SHA-256 of the pixels of each image that the weights were trained on; None where nobody knows."""
        return self.bundle_card.training_images

    @property
    def trained_on_unknown(self) -> bool:
        """Whether they were trained on others, too, that nobody knows."""
        return self.bundle_card.saw_unknown_images

    @property
    def training_perceptual_hashes(self) -> tuple[str, ...]:
        """Perceptual hash of each of them."""
        return self.bundle_card.training_perceptual_hashes

    @property
    def tuning_images(self) -> tuple[str, ...]:
        """SHA-256 of the pixels of each image that the threshold, or the gain of the views, was found on."""
        found = self.views or self.threshold == self.bundle_card.threshold
        return self.bundle_card.tuning_images if found else ()

    @property
    def threshold_origin(self) -> dict[str, Any]:
        """Where the threshold comes from, for reports."""
        own = self.bundle_card.threshold if self.gain is None else self.gain.threshold
        if self.threshold != own:
            return {"how": "given"}
        if self.gain is not None:
            return {"how": "tuned", **self.gain.model_dump(mode="json", exclude={"threshold"})}
        return self.bundle_card.threshold_origin.model_dump(exclude_none=True)

    def __call__(self, image: str | Path | Image.Image | np.ndarray, prompt: str) -> Prediction:
        """The prediction for one phrase on one image: a path, a PIL image or a uint8 array (h, w, 3) or (h, w)."""
        name = Path(image).stem if isinstance(image, str | Path) else "image"
        return self.predict([Item(name, as_pixels(image)[None], (prompt,))])[0]

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """One prediction for each (item, prompt), in order; masks that the items may hold are not looked at."""
        predictions: list[Prediction] = []
        done = 0
        while done < len(items):
            some = items[done : done + self.batch]
            try:
                predictions += self._predict_batch([replace(item, masks=None) for item in some])
            except (RuntimeError, MemoryError) as error:
                if len(some) == 1 or not _is_shortage(error):
                    raise
                reason = " ".join(str(error).split())
            else:
                done += len(some)
                continue
            # here, and not above, the error no longer holds the tensors of the batch
            self._halve_batch(len(some), reason)
        return predictions

    def trying(self, views: Sequence[str], prompts: Iterable[str]) -> Predictor:
        """The same predictor for `tune`, whose predictions keep what each of the views shows (`ViewedPrediction`).

        SettingError for no or an unknown view, beside tiles or cleaning, and for prompts that a view does not allow.
        """
        check_whole_images(self.tiles)
        if self.cleaning is not None:
            raise SettingError("views are tried on masks as they are; open the model without cleaning")
        tried = copy(self)
        tried.views = choose_views(views)
        check_phrases(prompts, tried.views)
        return tried

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Raise SettingError for prompts that the views do not allow."""
        check_phrases(prompts, self.views)

    def prepare(self, item: Item) -> Item:
        """The item for `predict`, with what can be done before the model is free; for any thread.

        Masks are left out. SettingError where the model takes no such image.
        """
        return Preprocessed(item.id, item.frames, item.prompts, view=self.processor.preprocess(item))

    def _halve_batch(self, images: int, reason: str) -> None:
        self.batch = images // 2
        self.times_halved += 1
        log.warning("memory ran out with %d images at once (%s); from here on %d", images, reason, self.batch)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def predict_forward(self, *asked: Any, **more: Any) -> dict[str, Any]:
        """The official interface: `image` or `video`, `text`, `past_text`, `mask_prompts`; and `official`.

        Gives `prediction`, the answer with its special tokens, and `prediction_masks`, for each [SEG] in it a bool
        (frames, h, w); see `inference/official.py`. SettingError with test-time augmentation, which is not official.
        """
        if self.views:
            raise SettingError(
                "the official interface has no test-time augmentation; open the model without tta"
            )
        return predict_forward(self, *asked, **more)

    def predict_video(
        self, clip: str | Path | Sequence[Any], prompts: Sequence[str], **settings: Any
    ) -> Iterator[FramePredictions]:
        """The predictions of each frame of a clip as they come; `settings` as for `inference/video.py`."""
        return predict_video(self, clip, prompts, **settings)

    @torch.inference_mode()
    def _predict_batch(self, items: Sequence[Item]) -> list[Prediction]:
        self.check_prompts(prompt for item in items for prompt in item.prompts)
        parameter = next(self.model.parameters())
        unseen = [item for item in items if not isinstance(item, Preprocessed)]
        looked = iter(map_on_cores(self.processor.preprocess, unseen))
        views = [item.view if isinstance(item, Preprocessed) else next(looked) for item in items]
        batch = self.processor(items, answered=self.answer == "force", inputs=views)
        batch = batch.to(parameter.device, parameter.dtype)
        answer = self.answer_batch(batch)
        decode = partial(decode_on_cores, partial(self.model.decode, encode=self.encode))
        if self.views:
            seen = decode_views(decode, batch.g_pixel_values, answer.seg, self.views)
            return list(self._to_predictions(items, answer, seen.logits, seen.scores, {}, seen.maps))
        if self.tiles is None:
            masks = decode(batch.g_pixel_values, answer.seg)
            return list(self._to_predictions(items, answer, masks.logits, masks.scores, {}))
        tiles, logits, scores = self._decode_tiles(items, answer.seg)
        return list(self._to_predictions(items, answer, logits, scores, tiles))

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
                self.encode,
            )
        return tiles, scores.new_zeros(len(scores), 0, 0), scores

    def answer_batch(self, batch: Batch) -> Answer:
        """What the model says to each row, in the way that was chosen."""
        stop_id = self.processor.stop_id
        match self.answer:
            case "verify":
                return verify_answer(self.model, batch, self.drafts, stop_id, MAX_NEW_TOKENS)
            case "generate":
                return generate_answer(self.model, batch, stop_id, MAX_NEW_TOKENS)
            case "force":
                return force_answer(self.model, batch)

    def _to_predictions(
        self,
        items: Sequence[Item],
        answer: Answer,
        logits: torch.Tensor,
        scores: torch.Tensor,
        tiles: dict[int, list[Tile]],
        seen: Mapping[str, np.ndarray] = MappingProxyType({}),
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
            prediction = Prediction(
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
            if self.cleaning is not None:
                prediction = CleanedPrediction(**vars(prediction), cleaning=self.cleaning)
            elif seen:
                each = {name: its[mine] for name, its in seen.items()}
                prediction = ViewedPrediction(**vars(prediction), maps=each)
            yield prediction


def _is_shortage(error: Exception) -> bool:
    """Whether memory ran out: PyTorch's allocator for CPUs says so in words alone."""
    told = any(words in str(error).lower() for words in SHORTAGES)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)
