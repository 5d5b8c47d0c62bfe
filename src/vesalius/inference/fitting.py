"""Whether a task fits devices, and the largest batch with which it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from vesalius.config import Settings
from vesalius.errors import SettingError
from vesalius.inference.footprint import (
    Pass,
    Work,
    measure_prediction,
    measure_training,
    prepared,
    quantized,
    share,
    weigh,
)
from vesalius.inference.placement import Device, Placement, place_shards, place_split, place_whole
from vesalius.models.families.table import family_of
from vesalius.models.quantization import Quantized
from vesalius.models.specs import ModelSpec
from vesalius.models.stored_model import empty_model
from vesalius.models.textseg import TextSegModel
from vesalius.models.trainable import TrainableSettings
from vesalius.segmenter import Purpose

NEW_TOKENS = 64
"""An answer may grow to so many; `inference/predictor.py` cuts it there."""
MOST_AT_ONCE = {"GPU": 32, "CPU": 4}
"""Largest batch that is chosen: a device that is busy gains nothing from more."""
MOST_QUESTIONS = 256


class PlanSettings(Settings):
    """What is to be done at once."""

    batch_size: int | None = Field(default=None, ge=1)
    """Images at once; None: as many as fit, up to `MOST_AT_ONCE`."""
    prompts: int = Field(default=1, ge=1)
    """Of each image."""
    image: tuple[int, int] | None = None
    """[h, w] of the images in pixels; None: those that become the most tokens."""
    text_tokens: int = Field(default=64, ge=1, le=32768)
    """Of a question without its image: the chat template and the phrase."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """None: bfloat16 on a GPU, float32 on a CPU; in training float32."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (self.batch_size or 1) * self.prompts > MOST_QUESTIONS:
            raise ValueError(f"batch_size times prompts must not exceed {MOST_QUESTIONS}")
        if self.image is not None and not all(1 <= side <= 20_000 for side in self.image):
            raise ValueError("image is [h, w] in pixels, each between 1 and 20000")
        return self


class PredictionSettings(PlanSettings):
    """The same for prediction."""

    quantization: Quantized | None = None
    """Of the matrices of the vision-language model, but its head."""
    cpu_memory: str | None = None
    """What offloaded weights may take, such as 64GiB; None: what is available on this machine."""


class TrainingSettings(PlanSettings):
    """The same for training."""

    trainable: TrainableSettings = TrainableSettings(preset="decoder")
    """As in a recipe."""
    sharded: bool = False
    """Each GPU holds a part of every weight, gradient and average (FSDP2) instead of the whole model (DDP)."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.dtype == "float16":
            raise ValueError(
                "dtype float16 needs loss scaling, which training here does not do; take bfloat16"
            )
        return self


@dataclass(frozen=True)
class Task:
    """A model, what it is to do, and the devices that it has."""

    spec: ModelSpec
    settings: PredictionSettings | TrainingSettings
    gpus: tuple[Device, ...]
    cpu: Device
    _costs: dict[tuple[str, ...], Pass] = field(default_factory=dict, compare=False, repr=False)
    """What was measured before, by this task or one that it was changed from."""

    @property
    def purpose(self) -> Purpose:
        """What it is to do."""
        return "train" if isinstance(self.settings, TrainingSettings) else "predict"

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations; in prediction of the weights too."""
        usual = "bfloat16" if self.gpus and self.purpose == "predict" else "float32"
        return getattr(torch, self.settings.dtype or usual)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The GPUs, or where there are none the CPU."""
        return self.gpus or (self.cpu,)

    def changed(self, *, gpus: Sequence[Device] | None = None, **settings: object) -> Task:
        """The same task with other settings or GPUs."""
        return replace(
            self,
            settings=self.settings.changed(**settings),
            gpus=self.gpus if gpus is None else tuple(gpus),
        )

    @cached_property
    def empty(self) -> TextSegModel:
        """The model without numbers, with weights of the size that they will have."""
        return self._made[0]

    @cached_property
    def _made(self) -> tuple[TextSegModel, dict[str, list[torch.nn.Parameter]]]:
        if isinstance(self.settings, TrainingSettings):
            return prepared(self.spec, self.settings.trainable)  # float32, whatever the activations are in
        model = empty_model(self.spec).to(self.dtype)
        return quantized(model, self.settings.quantization) if self.settings.quantization else model, {}

    @property
    def quantization(self) -> Quantized | None:
        """What the matrices of the vision-language half are turned into."""
        settings = self.settings
        return (
            settings.trainable.quantization
            if isinstance(settings, TrainingSettings)
            else settings.quantization
        )

    @property
    def shards(self) -> int:
        """Processes that divide the weights between them."""
        return len(self.gpus) if isinstance(self.settings, TrainingSettings) and self.settings.sharded else 1

    @property
    def copies(self) -> int:
        """GPUs that each hold a whole model in training."""
        return 1 if self.shards > 1 or self.purpose == "predict" else len(self.devices)

    @cached_property
    def weights(self) -> dict[str, int]:
        """Part -> bytes on a device, LoRA included."""
        return weigh(self.empty, self.shards)

    @cached_property
    def remembered(self) -> dict[str, int]:
        """Group -> bytes on a device that training keeps: two averages, and DDP's copy of the gradients."""
        times = 3 if self.copies > 1 else 2
        return {
            group: sum(times * share(parameter, self.shards) for parameter in parameters)
            for group, parameters in self._made[1].items()
        }

    def cost(self, batch: int) -> Pass:
        """What a pass over so many images needs besides; measured once."""
        settings = self.settings
        size = settings.image or family_of(self.spec.family).largest_image(self.spec)
        work = Work(batch, settings.prompts, size, settings.text_tokens)
        key: tuple[str, ...] = (self.purpose, str(self.dtype), repr(work))
        if isinstance(settings, TrainingSettings):
            key += (repr(settings.trainable), str(self.shards))
        if key not in self._costs:
            if isinstance(settings, TrainingSettings):
                cost = measure_training(self.spec, self.dtype, work, settings.trainable, self.shards)
            else:
                cost = measure_prediction(self.spec, self.dtype, work, NEW_TOKENS)
            if cost.tokens > self.spec.context:
                raise SettingError(
                    f"{self.spec.name}: a question of {cost.tokens} tokens is longer than the model's context of "
                    f"{self.spec.context}; lower text_tokens or the size of the image"
                )
            self._costs[key] = cost
        return self._costs[key]

    @property
    def held(self) -> int:
        """Bytes of the weights, and of what training remembers of them."""
        return sum(self.weights.values()) + sum(self.remembered.values())

    def expect(self, batch: int) -> Pass:
        """What `cost` would say of a larger batch: each image costs what the second does."""
        return self.cost(1).grown(self.cost(2), batch - 1) if batch > 1 else self.cost(1)

    def fit(self, cost: Pass) -> Placement | None:
        """On one device, or the fewest GPUs that the language model's layers must be split over; else None.

        In shards on all of them.
        """
        if self.shards > 1:
            return place_shards(self.held, cost, self.gpus)
        for device in self.devices:
            if whole := place_whole(self.held, cost, device):
                return whole
        if self.purpose == "predict":
            for count in range(2, len(self.gpus) + 1):
                if split := place_split(self.empty, cost, self.gpus[:count], {}):
                    return split
        return None

    def offload(self, cost: Pass, disk: bool) -> Placement | None:
        """The same with some of the weights in the CPU's memory, and with `disk` on disk too; else None."""
        if self.purpose == "train" or (
            isinstance(self.settings, PredictionSettings) and self.settings.quantization
        ):
            return None
        elsewhere = {"cpu": self.cpu.size} if self.gpus else {}
        if disk:
            elsewhere["disk"] = 2**62
        return place_split(self.empty, cost, self.devices, elsewhere) if elsewhere else None

    def choose_batch(self) -> int:
        """The largest power of two that fits the fewest GPUs, up to `MOST_AT_ONCE`; 1 where nothing does."""
        most = MOST_AT_ONCE["GPU" if self.gpus else "CPU"]
        fewest = self.fit(self.cost(1))
        if fewest is None:
            return 1

        def fits(cost: Pass) -> bool:
            placement = self.fit(cost)
            # rather a copy of the model for each share of the images than a larger batch over more GPUs
            return placement is not None and len(placement.loads) == len(fewest.loads)

        batch = 1
        while batch < most and fits(self.expect(2 * batch)):
            batch *= 2
        while batch > 1 and not fits(self.cost(batch)):
            batch //= 2
        return batch
