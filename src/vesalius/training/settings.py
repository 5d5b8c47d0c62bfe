"""The settings of a training run: what a recipe may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from vesalius.config import Settings
from vesalius.data.augment import AugmentSettings
from vesalius.evaluation.metrics import METRICS
from vesalius.models.specs import UNetShape
from vesalius.models.trainable import GROUPS, NEW_TOKENS, TrainableSettings
from vesalius.training.losses import LossSettings
from vesalius.training.mixture import TaskSettings


class TrainingData(Settings):
    """Which datasets, in any supported format."""

    train: Path
    val: Path | None = None
    """Without it there is no validation, and the last checkpoint is the best."""
    prompt: str | None = None
    """Maps every phrase to this one; all objects of an image become one target."""
    questions: Path | None = None
    """Conversations about images, in the form of LLaVA's training files; `tasks.questions` says how many."""


class OptimSettings(Settings):
    """AdamW with warm-up and cosine decay to a thousandth. The defaults are those of the published fine-tuning."""

    lr: float = Field(default=4e-5, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of the run in which the rate rises to `lr`."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches an optimizer step."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Share that a running mean of the weights keeps at each step, such as 0.99; the mean is validated and saved. None:
    the weights themselves are."""
    lr_multipliers: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Factor on `lr` for a part of the model: vision encoder, language model, language head, projector, SAM
    encoder, SAM decoder, new tokens. Others have 1."""

    @field_validator("lr_multipliers")
    @classmethod
    def _multipliers_name_parts(cls, multipliers: dict[str, float]) -> dict[str, float]:
        known = (*GROUPS, NEW_TOKENS)
        if unknown := [name for name in multipliers if name not in known]:
            raise ValueError(f"no part of the model is called {unknown[0]!r}; known: {', '.join(known)}")
        return multipliers


class ValidateSettings(Settings):
    """When and on what to validate."""

    every_epochs: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=1)
    """Only the first that many samples; None: all."""
    metric: str = "dice"
    """The mean by which the best checkpoint is chosen: any metric of `vesalius evaluate`, such as cldice or hd95_px."""
    patience: int | None = Field(default=None, ge=1)
    """The run ends after that many validations without a better one; None: it does not."""
    figures: int = Field(default=4, ge=0)
    """Answers drawn at each validation, the same ones each time."""

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"is {metric!r}; known: {', '.join(METRICS)}")
        return metric


class RunSettings(Settings):
    """One run. Give exactly one of `steps`, `epochs` and `minutes`."""

    model: str
    """A bundle, a run, or a model name; `unet` begins a U-Net with a channel for each phrase of the data."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random`: new weights, of `tiny` or of a U-Net."""
    projector: Literal["kept", "fitted"] = "kept"
    """`fitted` makes it anew, for the phrases of the data to lie apart from the first step: for two or more that the model
    has not learned yet."""
    data: TrainingData
    unet: UNetShape | None = None
    """Widths and patch of a U-Net that begins with `model: unet`; without it those of `UNetShape`."""
    trainable: TrainableSettings = TrainableSettings(preset="decoder")
    """From the projector alone to all weights, by the name of a level; or with sizes of LoRA, 4 bits, checkpointing."""
    loss: LossSettings = LossSettings()
    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    """Time for training steps; validation comes on top. A run by minutes cannot be repeated to the digit."""
    batch_size: int = Field(default=4, ge=1)
    """Images in one batch of one process; each brings all its phrases."""
    num_workers: int = Field(default=1, ge=0)
    """Threads that prepare the next batches; 0 prepares them in the loop."""
    precision: Literal["fp32", "bf16"] = "fp32"
    optim: OptimSettings = OptimSettings()
    augment: AugmentSettings = AugmentSettings()
    tasks: TaskSettings = TaskSettings()
    validate_: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    save_every_minutes: float = Field(default=15.0, gt=0)
    """A checkpoint is written after that time, besides those before each validation."""
    trackers: tuple[str, ...] | None = None
    """Programs that also get the numbers: tensorboard, wandb, mlflow and others of Accelerate, with files in the run
    folder. None: TensorBoard where it is installed; []: none."""
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

    @model_validator(mode="after")
    def _phrases_can_be_set_apart(self) -> Self:
        if self.projector == "fitted" and self.data.prompt is not None:
            raise ValueError(
                "projector: fitted sets phrases apart, but data.prompt makes one of all; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _words_can_be_learned(self) -> Self:
        tasks = self.tasks
        if (tasks.questions or tasks.absent == "words") and self.trainable.preset in (
            "projector",
            "decoder",
        ):
            raise ValueError(
                f"the preset {self.trainable.preset} of trainable learns no words: leave tasks.questions and "
                "absent: words out, or train the language model (lora, tokens, vision, full)"
            )
        return self
