"""`PlanTask`: whether a model, with what it is to do, fits devices, and the largest batch that fits."""

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
    PassMemory,
    Workload,
    measure_prediction,
    measure_training,
    quantize_empty,
    shard_bytes,
    trainable_model,
    weight_bytes,
)
from vesalius.inference.placement import Device, Placement, place_split, place_whole
from vesalius.inference.predictor import MAX_NEW_TOKENS
from vesalius.models.families.table import family_of
from vesalius.models.quantization import Quantized
from vesalius.models.specs import ModelSpec
from vesalius.models.stored_model import empty_model
from vesalius.models.textseg import TextSegModel
from vesalius.models.trainable import TrainableSettings
from vesalius.segmenter import Purpose

MAX_BATCH = {"GPU": 32, "CPU": 4}
"""Largest batch size that is chosen; a busy device gains nothing from more."""
MAX_QUESTIONS = 256
"""Largest batch size times prompts."""


class PlanSettings(Settings):
    """Settings of a plan for either purpose."""

    batch_size: int | None = Field(default=None, ge=1)
    """Images per batch; null: as many as fit, at most 32 on a GPU and 4 on a CPU."""
    prompts: int = Field(default=1, ge=1)
    """Prompts for each image."""
    image: tuple[int, int] | None = None
    """[h, w] of the images in pixels; null: a size that gives the most tokens."""
    text_tokens: int = Field(default=64, ge=1, le=32768)
    """Tokens of a question without its image: chat template and phrase."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """null: for prediction bfloat16 on a GPU and float32 on a CPU; for training float32."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (self.batch_size or 1) * self.prompts > MAX_QUESTIONS:
            raise ValueError(f"batch_size times prompts must not exceed {MAX_QUESTIONS}")
        if self.image is not None and not all(1 <= side <= 20_000 for side in self.image):
            raise ValueError("image is [h, w] in pixels, each between 1 and 20000")
        return self


class PredictionSettings(PlanSettings):
    """Settings of a plan for prediction."""

    quantization: Quantized | None = None
    """Bits of the matrices of the vision-language model, except its head."""
    cpu_memory: str | None = None
    """Memory for offloaded weights, such as 64GiB; null: what is available on this machine."""


class TrainingSettings(PlanSettings):
    """Settings of a plan for training."""

    trainable: TrainableSettings = TrainableSettings(preset="decoder")
    """What trains, as in a recipe."""
    sharded: bool = False
    """Split every weight, gradient and optimizer state over the GPUs (FSDP2) instead of copying the model (DDP)."""

    @property
    def quantization(self) -> Quantized | None:
        """Bits of the frozen matrices of the vision-language model."""
        return self.trainable.quantization

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.dtype == "float16":
            raise ValueError("dtype float16 needs loss scaling, which training does not do; take bfloat16")
        return self


@dataclass(frozen=True)
class PlanTask:
    """A model, its settings, and the available devices."""

    spec: ModelSpec
    settings: PredictionSettings | TrainingSettings
    gpus: tuple[Device, ...]
    cpu: Device
    _costs: dict[tuple[str, ...], PassMemory] = field(default_factory=dict, compare=False, repr=False)
    """Measurements of this task, and of tasks that it was changed from."""

    @property
    def purpose(self) -> Purpose:
        """predict or train, by the class of the settings."""
        return "train" if isinstance(self.settings, TrainingSettings) else "predict"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of activations; in prediction of the weights too."""
        usual = "bfloat16" if self.gpus and self.purpose == "predict" else "float32"
        return getattr(torch, self.settings.dtype or usual)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The GPUs, or the CPU without any."""
        return self.gpus or (self.cpu,)

    def changed(self, *, gpus: Sequence[Device] | None = None, **settings: object) -> PlanTask:
        """The same task with other settings or GPUs."""
        return replace(
            self, settings=self.settings.changed(**settings), gpus=self.gpus if gpus is None else tuple(gpus)
        )

    @property
    def empty(self) -> TextSegModel:
        """The model on the meta device, with weights of their final size."""
        return self._empty[0]

    @cached_property
    def _empty(self) -> tuple[TextSegModel, dict[str, list[torch.nn.Parameter]]]:
        if isinstance(self.settings, TrainingSettings):
            return trainable_model(self.spec, self.settings.trainable)  # float32 for any activations
        model = empty_model(self.spec).to(self.dtype)
        kind = self.settings.quantization
        return quantize_empty(model, kind) if kind else model, {}

    @property
    def shards(self) -> int:
        """Number of processes that the weights are split over; 1 without sharding."""
        return len(self.gpus) if isinstance(self.settings, TrainingSettings) and self.settings.sharded else 1

    @property
    def replicas(self) -> int:
        """GPUs with a whole copy of the model in training (DDP)."""
        return 1 if self.shards > 1 or self.purpose == "predict" else len(self.devices)

    @cached_property
    def weights(self) -> dict[str, int]:
        """Component -> bytes on a device, LoRA included."""
        return weight_bytes(self.empty, self.shards)

    @cached_property
    def optimizer_state(self) -> dict[str, int]:
        """Parameter group -> bytes on a device: AdamW's two moments, and DDP's copy of the gradients."""
        times = 3 if self.replicas > 1 else 2
        return {
            group: sum(times * shard_bytes(parameter, self.shards) for parameter in parameters)
            for group, parameters in self._empty[1].items()
        }

    @property
    def resident(self) -> int:
        """Bytes of weights and optimizer state on a device."""
        return sum(self.weights.values()) + sum(self.optimizer_state.values())

    def cost(self, batch_size: int) -> PassMemory:
        """Memory of a pass over so many images, in addition to `resident`; measured once."""
        settings = self.settings
        size = settings.image or family_of(self.spec.family).largest_image(self.spec)
        work = Workload(batch_size, settings.prompts, size, settings.text_tokens)
        key: tuple[str, ...] = (self.purpose, str(self.dtype), repr(work))
        if isinstance(settings, TrainingSettings):
            key += (repr(settings.trainable), str(self.shards))
        if key not in self._costs:
            if isinstance(settings, TrainingSettings):
                cost = measure_training(self.spec, self.dtype, work, settings.trainable, self.shards)
            else:
                cost = measure_prediction(self.spec, self.dtype, work, MAX_NEW_TOKENS)
            if cost.tokens > self.spec.context:
                raise SettingError(
                    f"{self.spec.name}: a question of {cost.tokens} tokens is longer than the model's context of "
                    f"{self.spec.context}; lower text_tokens or the image size",
                    code="context_too_long",
                    field="text_tokens",
                )
            self._costs[key] = cost
        return self._costs[key]

    def estimate(self, batch_size: int) -> PassMemory:
        """`cost`, extrapolated from batches of 1 and 2: each further image costs what the second does."""
        if batch_size == 1:
            return self.cost(1)
        return self.cost(1).extrapolated(self.cost(2), batch_size - 1)

    def fit(self, cost: PassMemory) -> Placement | None:
        """The placement on one device, else split over the fewest GPUs, sharded over all; None if nothing fits."""
        if self.shards > 1:
            return place_whole(self.resident, cost, self.gpus)
        for device in self.devices:
            if whole := place_whole(self.resident, cost, [device]):
                return whole
        most = len(self.gpus) if self.purpose == "predict" else 0
        splits = (place_split(self.empty, cost, self.gpus[:count], {}) for count in range(2, most + 1))
        return next((split for split in splits if split), None)

    def offload(self, cost: PassMemory, disk: bool) -> Placement | None:
        """The placement with some weights in CPU memory, and with `disk` on disk too; None if nothing fits."""
        if self.purpose == "train" or self.settings.quantization:
            return None
        spill = {"cpu": self.cpu.size} if self.gpus else {}
        if disk:
            spill["disk"] = 2**62
        return place_split(self.empty, cost, self.devices, spill) if spill else None

    def choose_batch_size(self) -> int:
        """The largest power of two, at most `MAX_BATCH`, that fits as few GPUs as one image; 1 if nothing fits."""
        most = MAX_BATCH["GPU" if self.gpus else "CPU"]
        fewest = self.fit(self.cost(1))
        if fewest is None:
            return 1

        def fits(cost: PassMemory) -> bool:
            placement = self.fit(cost)
            # further GPUs are better used for copies of the model than for a larger batch
            return placement is not None and len(placement.loads) == len(fewest.loads)

        size = 1
        while size < most and fits(self.estimate(2 * size)):
            size *= 2
        while size > 1 and not fits(self.cost(size)):
            size //= 2
        return size
