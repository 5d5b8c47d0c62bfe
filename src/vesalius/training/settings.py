"""The settings of a training run: what a recipe may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from vesalius.config import Settings
from vesalius.data.augment import AugmentSettings
from vesalius.training.losses import LossSettings
from vesalius.training.trainable import GROUPS


class TrainingData(Settings):
    """Which data sets, in any supported format."""

    train: Path
    val: Path | None = None
    """Without it there is no validation, and the last checkpoint is the best."""
    prompt: str | None = None
    """Maps every phrase to this one; all objects of an image become one target."""


class OptimSettings(Settings):
    """AdamW with warm-up and cosine decay to zero. The defaults are those of the published fine-tuning."""

    lr: float = Field(default=4e-5, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the run in which the rate rises to `lr`."""
    accumulate: int = Field(default=1, ge=1)
    """Batches an optimiser step."""
    factors: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Factor on `lr` for a part of the model: vision encoder, language model, language head, projector, SAM
    encoder, SAM decoder. Others have 1."""

    @field_validator("factors")
    @classmethod
    def _factors_name_parts(cls, factors: dict[str, float]) -> dict[str, float]:
        if unknown := [name for name in factors if name not in GROUPS]:
            raise ValueError(f"no part of the model is called {unknown[0]!r}; known: {', '.join(GROUPS)}")
        return factors


class ValidateSettings(Settings):
    """When and on what to validate."""

    every_epochs: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=1)
    """Only the first that many samples; None: all."""
    metric: Literal["dice", "iou", "precision", "recall", "accuracy"] = "dice"
    """The mean by which the best checkpoint is chosen."""


class RunSettings(Settings):
    """One run. Give exactly one of `steps`, `epochs` and `minutes`."""

    model: str
    """A bundle, a run, or a model name."""
    start: Literal["weights", "random"] = "weights"
    """`random` takes only the shape of `model`, and new weights."""
    data: TrainingData
    what_trains: Literal["projector", "decoder", "full"] = "decoder"
    """`projector`: the [SEG] projector; `decoder`: also SAM's mask decoder; `full`: all that images pass through."""
    loss: LossSettings = LossSettings()
    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    """Time for training steps; validation comes on top. A run by minutes cannot be repeated to the digit."""
    batch: int = Field(default=4, ge=1)
    """Images in one batch of one process; each brings all its phrases."""
    workers: int = Field(default=1, ge=0)
    """Threads that prepare the next batches; 0 prepares them in the loop."""
    precision: Literal["fp32", "bf16"] = "fp32"
    optim: OptimSettings = OptimSettings()
    augment: AugmentSettings = AugmentSettings()
    validate_: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    seed: int = Field(default=0, ge=0, lt=2**63)
    out: Path
    """The run folder."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [name for name in ("steps", "epochs", "minutes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of steps, epochs and minutes; got {', '.join(given) or 'none'}"
            )
        return self
