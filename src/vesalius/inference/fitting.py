"""`PlanTask`: decide whether a model fits the available devices, and with which batch size."""

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
"""Largest batch size that a plan chooses; larger batches are no faster on a busy device."""
MAX_PROMPTS = 256
"""Maximum of batch size times prompts per image."""


class PlanSettings(Settings):
    """Settings of any plan."""

    batch_size: int | None = Field(default=None, ge=1)
    """Images per batch; null: as many as fit, at most 32 on a GPU and 4 on a CPU."""
    prompts: int = Field(default=1, ge=1)
    """Prompts per image."""
    image: tuple[int, int] | None = None
    """[h, w] of the images in pixels; null: the size with the most tokens."""
    text_tokens: int = Field(default=64, ge=1, le=32768)
    """Tokens of a prompt without its image: chat template and phrase."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of activations, and in prediction of weights; null: bfloat16 for prediction on a GPU, else float32."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (self.batch_size or 1) * self.prompts > MAX_PROMPTS:
            raise ValueError(f"batch_size times prompts must not exceed {MAX_PROMPTS}")
        if self.image is not None and not all(1 <= side <= 20_000 for side in self.image):
            raise ValueError("image is [h, w] in pixels, each between 1 and 20000")
        return self


class PredictionSettings(PlanSettings):
    """Settings of a plan for prediction."""

    quantization: Quantized | None = None
    """Bits per value of the vision-language model's matrices, except its head; null: not quantized."""
    cpu_memory: str | None = None
    """CPU memory for offloaded weights, such as 64GiB; null: the memory available on this machine."""


class TrainingSettings(PlanSettings):
    """Settings of a plan for training."""

    trainable: TrainableSettings = TrainableSettings(preset="decoder")
    """Trainable parameters, as in a recipe."""
    sharded: bool = False
    """Shard weights, gradients and optimizer state over the GPUs (FSDP2) instead of copying the model to each (DDP)."""

    @property
    def quantization(self) -> Quantized | None:
        """Quantization of the vision-language model's frozen matrices."""
        return self.trainable.quantization

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.dtype == "float16":
            raise ValueError("dtype float16 needs loss scaling, which training does not support; use bfloat16")
        return self


@dataclass(frozen=True)
class PlanTask:
    """A model, plan settings, and the available devices."""

    spec: ModelSpec
    settings: PredictionSettings | TrainingSettings
    gpus: tuple[Device, ...]
    cpu: Device
    _costs: dict[tuple[str, ...], PassMemory] = field(default_factory=dict, compare=False, repr=False)
    """Measurements shared with the tasks that this task was `changed` from."""

    @property
    def purpose(self) -> Purpose:
        """Purpose of the plan, by the class of its settings."""
        return "train" if isinstance(self.settings, TrainingSettings) else "predict"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the activations; in prediction also of the weights."""
        usual = "bfloat16" if self.gpus and self.purpose == "predict" else "float32"
        return getattr(torch, self.settings.dtype or usual)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The GPUs, or the CPU if there are none."""
        return self.gpus or (self.cpu,)

    def changed(self, *, gpus: Sequence[Device] | None = None, **settings: object) -> PlanTask:
        """The same task with other settings or GPUs."""
        return replace(
            self, settings=self.settings.changed(**settings), gpus=self.gpus if gpus is None else tuple(gpus)
        )

    @property
    def empty(self) -> TextSegModel:
        """The model on the meta device, with its weights in their planned dtype and quantization."""
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
        """Number of processes that share the weights; 1 without sharding."""
        return len(self.gpus) if isinstance(self.settings, TrainingSettings) and self.settings.sharded else 1

    @property
    def replicas(self) -> int:
        """Number of GPUs with a full copy of the model in training (DDP); 1 for prediction."""
        return 1 if self.shards > 1 or self.purpose == "predict" else len(self.devices)

    @cached_property
    def weights(self) -> dict[str, int]:
        """Component -> bytes of its weights on a device, with LoRA."""
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
        """Memory of a pass over `batch_size` images, in addition to `resident`; measured once."""
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
                    f"{self.spec.name}: a prompt of {cost.tokens} tokens is longer than the model's context of "
                    f"{self.spec.context}; lower text_tokens or the image size",
                    code="context_too_long",
                    field="text_tokens",
                )
            self._costs[key] = cost
        return self._costs[key]

    def estimate(self, batch_size: int) -> PassMemory:
        """`cost`, extrapolated linearly from batches of 1 and 2 images."""
        if batch_size == 1:
            return self.cost(1)
        return self.cost(1).extrapolated(self.cost(2), batch_size - 1)

    def fit(self, cost: PassMemory) -> Placement | None:
        """Placement on one device, else split over the fewest GPUs, or sharded over all; None if nothing fits."""
        if self.shards > 1:
            return place_whole(self.resident, cost, self.gpus)
        for device in self.devices:
            if whole := place_whole(self.resident, cost, [device]):
                return whole
        most = len(self.gpus) if self.purpose == "predict" else 0
        splits = (place_split(self.empty, cost, self.gpus[:count], {}) for count in range(2, most + 1))
        return next((split for split in splits if split), None)

    def offload(self, cost: PassMemory, disk: bool) -> Placement | None:
        """Placement with some weights in CPU memory, and with `disk` also on disk; None if nothing fits."""
        if self.purpose == "train" or self.settings.quantization:
            return None
        spill: dict[int | str, int] = {"cpu": self.cpu.size} if self.gpus else {}
        if disk:
            spill["disk"] = 2**62
        return place_split(self.empty, cost, self.devices, spill) if spill else None

    def choose_batch_size(self) -> int:
        """Largest power of two, up to `MAX_BATCH`, that needs no more GPUs than one image; 1 if nothing fits."""
        most = MAX_BATCH["GPU" if self.gpus else "CPU"]
        fewest = self.fit(self.cost(1))
        if fewest is None:
            return 1

        def fits(cost: PassMemory) -> bool:
            placement = self.fit(cost)
            # more GPUs serve better for copies of the model than for a larger batch
            return placement is not None and len(placement.loads) == len(fewest.loads)

        size = 1
        while size < most and fits(self.estimate(2 * size)):
            size *= 2
        while size > 1 and not fits(self.cost(size)):
            size //= 2
        return size
