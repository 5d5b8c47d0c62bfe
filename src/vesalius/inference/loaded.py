"""`LoadedSegmenter`: base class of the text-prompted predictor and the baselines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from numbers import Real
from typing import Any, overload

import torch

from vesalius.calls import check_kind, checked, describe
from vesalius.cleaning import Cleaning
from vesalius.colors import phrase_colors
from vesalius.data.images import check_frame
from vesalius.data.pictures import Picture, as_pixels, held, is_picture, picture_ids
from vesalius.errors import SettingError
from vesalius.models.cards import ModelCard, TtaGain
from vesalius.phrases import Match, describe_prompts, match, refuse_unknown
from vesalius.segmenter import ModelDescription, Segmenter
from vesalius.types import Item, Prediction
from vesalius.window import AUTO, Window


class LoadedSegmenter(Segmenter):
    """A segmenter with a model card, a threshold and a name.

    If the card lists the model's phrases, each prompt is first compared with them (`phrases.py`), for images and clips
    alike. Notes on prompts are logged once for each prompt, unless `check_prompts` has returned them before.
    """

    answers_unknown = True
    """Whether the model gives a mask for a phrase that its card does not list; if not, such a phrase is refused."""

    def __init__(
        self,
        card: ModelCard,
        *,
        threshold: float | None = None,
        cleaning: Cleaning | None = None,
        batch_size: int = 4,
        name: str = "",
        fingerprint: str | None = None,
        gain: TtaGain | None = None,
        window: Any = None,
        strict_phrases: bool = False,
    ) -> None:
        """`threshold` defaults to the card's, or with test-time augmentation to the one tuned for it (`gain`).

        With `strict_phrases` a prompt that is none of the card's phrases is refused (SettingError, `unknown_phrase`).
        `window`, as `Window.parse` reads it, is that of images without one of their own; None: that of training if the
        card states it, else `auto`. SettingError for a threshold outside (0, 1), and for a batch size below 1.
        """
        check_kind(batch_size, int, "batch_size", "a whole number")
        check_kind(threshold, Real | None, "threshold", "a number between 0 and 1")
        check_kind(cleaning, Cleaning | None, "cleaning", "a Cleaning, from vesalius.cleaning")
        if batch_size < 1:
            raise SettingError(f"batch_size must be at least 1; got {batch_size}", code="bad_value", field="batch_size")
        if threshold is not None and not 0 < threshold < 1:
            raise SettingError(
                f"the threshold must lie between 0 and 1; got {threshold}", code="bad_value", field="threshold"
            )
        self.model_card = card
        self.window = Window.of(window if window is not None else card.window or AUTO)
        self.gain = gain
        """Measured gain of test-time augmentation; None if it is off."""
        self._tuned_threshold = card.threshold if gain is None else gain.threshold
        self.threshold = self._tuned_threshold if threshold is None else threshold
        self.cleaning = None if cleaning == Cleaning() else cleaning
        self.batch_size = batch_size
        self.name = name or card.kind
        self.fingerprint = fingerprint
        self.strict_phrases = strict_phrases or not self.answers_unknown
        self._matches: dict[str, Match] = {}
        self._noted: set[str] = set()
        """Prompts with notes that were logged, or returned by `check_prompts`."""

    @property
    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """All settings that change the masks, except threshold and cleaning."""

    @property
    def _window_settings(self) -> dict[str, Any]:
        """The window, and that of training if it is another one."""
        trained = self.model_card.window
        other = {} if trained in (None, self.window) else {"training_window": trained.plain}
        return {"window": self.window.plain, **other}

    @property
    def description(self) -> ModelDescription:
        """The card's facts with the settings in use.

        Tuning images are listed only if the tuned threshold or test-time augmentation is in use.
        """
        card = self.model_card
        if self.threshold != self._tuned_threshold:
            origin: dict[str, Any] = {"how": "given"}
        elif self.gain is not None:
            origin = {"how": "tuned", **self.gain.model_dump(mode="json", exclude={"threshold"})}
        else:
            origin = card.threshold_origin.model_dump(exclude_none=True)
        tuned = self.gain is not None or self.threshold == card.threshold
        cleaning = {} if self.cleaning is None else {"cleaning": self.cleaning.model_dump()}
        return ModelDescription(
            name=self.name,
            kind=card.kind,
            fingerprint=self.fingerprint,
            step=card.step,
            phrases=card.phrases,
            threshold=self.threshold,
            threshold_origin=origin,
            settings=cleaning | self._settings | self._window_settings,
            batch_size=self.batch_size,
            training_images=card.training_images,
            trained_on_unknown=card.saw_unknown_images,
            training_perceptual_hashes=card.training_perceptual_hashes,
            training_texture_hashes=card.training_texture_hashes,
            tuning_images=card.tuning_images if tuned else (),
            window=self.window,
            training_window=card.window,
        )

    def check_prompts(self, prompts: Iterable[str]) -> list[str]:
        """Notes as for `Segmenter`; SettingError for unknown phrases with `strict_phrases`."""
        given = list(dict.fromkeys(prompts))
        if self.strict_phrases:
            refuse_unknown(given, self.model_card.phrases, self.name)
        self._noted.update(given)
        return describe_prompts(given, self.model_card.phrases, self.name)

    def match_prompts(self, prompts: Iterable[str]) -> list[Match]:
        """The phrase to ask for each prompt; logs notes on prompts that were not checked before.

        SettingError for unknown phrases with `strict_phrases`.
        """
        given = list(prompts)
        if new := [prompt for prompt in given if prompt not in self._noted]:
            self.note_prompts(new)
        for prompt in given:
            if prompt not in self._matches:
                self._matches[prompt] = match(prompt, self.model_card.phrases)
        return [self._matches[prompt] for prompt in given]

    # a string is a sequence of strings, and bytes are a sequence: the first overload that fits is meant
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, image: Picture, prompt: str, *, frame: int | None = None
    ) -> Prediction: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, image: Picture, prompt: Sequence[str], *, frame: int | None = None
    ) -> list[Prediction]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, image: Sequence[Picture], prompt: str, *, frame: int | None = None
    ) -> list[Prediction]: ...
    @overload
    def __call__(
        self, image: Sequence[Picture], prompt: Sequence[str], *, frame: int | None = None
    ) -> list[list[Prediction]]: ...

    @checked
    def __call__(
        self, image: Picture | Sequence[Picture], prompt: str | Sequence[str], *, frame: int | None = None
    ) -> Prediction | list[Prediction] | list[list[Prediction]]:
        """The prediction for a prompt on an image; for a list of either, a list of predictions in its order.

        Two lists give every combination: a list with, for each image, the list of its prompts' predictions. Each image
        is encoded once for all prompts, and `batch_size` images together. An image is a path, the bytes of a file, a
        file object, a PIL image, a NumPy array or a torch tensor (see `as_rgb`); `frame` is the index of a frame, from
        0, in files with several. The id of a prediction is the stem of the image's path. SettingError for an empty
        prompt, and for values that are no image; ImageError for an image that cannot be read.

        >>> predictor = load_predictor("frangi")
        >>> image = np.zeros((40, 60), np.uint8)
        >>> predictor(image, "vessel")
        <Prediction 'vessel' in 'image': 40 x 60, ok, 0 px (0.0%)>
        >>> [[each.prompt for each in row] for row in predictor([image, image], ["vessel", "wire"])]
        [['vessel', 'wire'], ['vessel', 'wire']]
        """
        images = [image] if is_picture(image) else _listed(image)
        prompts = check_prompt_list([prompt] if isinstance(prompt, str) else prompt)
        by_image = list(self._predict_pictures([held(each) for each in images], prompts, check_frame(frame)))
        found = [each[0] for each in by_image] if isinstance(prompt, str) else by_image
        return found[0] if is_picture(image) else found

    @overload
    def predict(self, items: Sequence[Item]) -> list[Prediction]: ...
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, items: Sequence[Picture], prompts: str, *, frame: int | None = None
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self, items: Sequence[Picture], prompts: Sequence[str], *, frame: int | None = None
    ) -> list[list[Prediction]]: ...

    @checked
    def predict(
        self,
        items: Sequence[Item] | Sequence[Picture],
        prompts: str | Sequence[str] | None = None,
        *,
        frame: int | None = None,
    ) -> list[Prediction] | list[list[Prediction]]:
        """One prediction for each (item, prompt), in order; masks in the items are ignored.

        With `prompts`, `items` is a list of images, and the result is that of `predictor(images, prompts)`: one
        prediction an image for one prompt, a list an image for a list of prompts. An empty list gives an empty list.
        """
        listed: list[Any] = _listed(items)
        if prompts is not None and any(isinstance(each, Item) for each in listed):
            message = "items have their own prompts; call predict(items), or give images with prompts"
            raise SettingError(message, code="conflicting_settings", field="prompts")
        if prompts is not None:
            return self(listed, prompts, frame=frame)
        if wrong := [each for each in listed if not isinstance(each, Item)]:
            raise SettingError(
                f'predict takes items, or images with prompts, as in predict(images, "blood vessel"); got '
                f"{describe(wrong[0])} without a prompt",
                code="no_prompt",
                field="prompts",
            )
        return self._answer(listed)

    def _answer(self, items: Sequence[Item]) -> list[Prediction]:
        """One prediction for each (item, prompt), in order; the model is asked the phrase that matches each prompt."""
        matches = [self.match_prompts(item.prompts) for item in items]
        asked = [
            replace(item, prompts=tuple(each.asked for each in its), masks=None)
            for item, its in zip(items, matches, strict=True)
        ]
        predictions = self._predict_items(asked)
        given = (each for its in matches for each in its)
        return [prediction.labeled(each) for prediction, each in zip(predictions, given, strict=True)]

    @abstractmethod
    def _predict_items(self, items: Sequence[Item]) -> list[Prediction]:
        """One prediction for each (item, prompt), in order; the prompts are the phrases to ask, and there are no masks."""

    def _predict_pictures(
        self, images: Sequence[Any], prompts: tuple[str, ...], frame: int | None
    ) -> Iterator[list[Prediction]]:
        """The predictions for each image; at most `batch_size` images are in memory."""
        self.match_prompts(prompts)
        chosen = phrase_colors(prompts)
        colors = [chosen[prompt] for prompt in prompts]
        named = iter(zip(images, picture_ids(images, frame), strict=True))
        while some := list(islice(named, self.batch_size)):
            items = [Item(name, as_pixels(image, frame, self.window, name)[None], prompts) for image, name in some]
            found = iter(self._answer(items))
            for image, _ in some:
                source = partial(as_pixels, image, frame, self.window)
                yield [
                    replace(prediction, read_image=source, color=color)
                    for prediction, color in zip(islice(found, len(prompts)), colors, strict=True)
                ]


def check_prompt_list(prompts: Iterable[str]) -> tuple[str, ...]:
    """The prompts as a tuple; SettingError if there is none, or one is not text or is blank."""
    several = isinstance(prompts, Iterable) and not isinstance(prompts, bytes | Mapping)
    listed: tuple[Any, ...] = tuple(prompts) if several else (prompts,)
    if not listed:
        raise SettingError("there is no prompt; give at least one", code="no_prompt", field="prompt")
    for prompt in listed:
        if not isinstance(prompt, str) or not prompt.strip():
            raise SettingError(
                f'a prompt is a phrase such as "blood vessel"; got {describe(prompt)}',
                code="invalid_prompt",
                field="prompt",
            )
    return listed


def _listed(values: Any) -> list[Any]:
    """A list of images or items; SettingError for any other value."""
    if is_picture(values):
        raise SettingError(
            "predict takes a list; for one image call predictor(image, prompt)", code="bad_value", field="items"
        )
    if not isinstance(values, Iterable) or isinstance(values, Mapping):
        held(values)  # refuses it, naming what an image is
    return list(values)


def device_settings(model: torch.nn.Module) -> dict[str, str]:
    """`device` and `dtype` of a model's parameters."""
    parameter = next(model.parameters())
    return {"device": str(parameter.device), "dtype": str(parameter.dtype).removeprefix("torch.")}
