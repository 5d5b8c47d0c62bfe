"""Settings of a training run: the keys of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from vesalius.config import Settings
from vesalius.data.augment import AugmentSettings
from vesalius.errors import SettingError
from vesalius.evaluation.metrics import METRICS
from vesalius.models.specs import UNetShape
from vesalius.models.trainable import GROUPS, NEW_TOKENS, TrainableSettings
from vesalius.names import read_synonyms
from vesalius.training.losses import LossSettings
from vesalius.training.mixture import TaskSettings
from vesalius.window import Window

SYNONYMS = read_synonyms("""
model: base base_model backbone checkpoint pretrained init_model weights model_name
data.train: train train_data train_dir training_data dataset data_dir train_set
data.val: val valid validation val_data val_dir valid_data eval_data test_data val_set
data.prompt: prompt phrase text_prompt class_name
unet.patch: patch_size crop_size crop
trainable.preset: freeze unfreeze finetune_mode trainable_layers
trainable.lora.language.rank: lora_r lora_rank r
trainable.lora.language.alpha: lora_alpha
trainable.lora.language.dropout: lora_dropout dropout
trainable.lora.language.targets: lora_targets target_modules lora_target_modules
trainable.quantization: load_in_4bit qlora bits
trainable.gradient_checkpointing: activation_checkpointing grad_checkpointing checkpointing
loss.bce: bce_weight loss_bce cross_entropy
loss.dice: dice_weight loss_dice dice_loss
loss.cldice: cldice_weight centerline_loss
loss.focal: focal_weight focal_loss
loss.class_balanced: class_weights pos_weight class_balance
steps: max_steps iterations iters max_iters num_steps total_steps training_steps train_steps
epochs: max_epochs num_epochs n_epochs num_train_epochs epochs_number
minutes: max_time time_limit max_minutes
batch_size: bs batch per_device_train_batch_size micro_batch_size train_batch_size images_per_batch
num_workers: workers dataloader_num_workers n_workers loader_workers threads
precision: dtype amp fp16 bf16 mixed_precision half
optim.lr: learning_rate learningrate base_lr max_lr peak_lr
optim.weight_decay: wd decay l2
optim.betas: beta1 beta2 adam_betas adam_beta1 adam_beta2
optim.max_grad_norm: clip grad_clip gradient_clip gradient_clip_val clip_grad_norm clip_norm grad_norm_clip
optim.warmup_ratio: warmup warmup_steps warmup_epochs warm_up
optim.gradient_accumulation_steps: accumulation accumulate accumulate_grad_batches grad_accum accum_steps grad_accumulation gradient_accumulation
optim.ema_decay: ema ema_rate moving_average
optim.lr_multipliers: lr_mult layer_lr param_groups
augment: augmentation augmentations aug transforms
augment.flip: hflip horizontal_flip fliplr random_flip
augment.flip_vertical: vflip vertical_flip flipud
augment.rotate_degrees: rotate rotation degrees
augment.scale: zoom scaling
augment.shift: translate translation
augment.contrast: brightness color_jitter
tasks.negatives: negative_samples negative_ratio
validate.every_epochs: eval_every val_every eval_interval val_interval check_val_every_n_epoch validate_every eval_epochs
validate.metric: monitor best_metric metric_for_best_model
validate.patience: early_stopping early_stop early_stopping_patience
validate.figures: num_figures n_figures pictures
save_every_minutes: save_every save_interval checkpoint_every save_steps
trackers: logger wandb tensorboard mlflow report_to
seed: random_seed random_state manual_seed
out: output output_dir out_dir run_dir save_dir work_dir
""")


def conflict(setting: str, message: str) -> SettingError:
    """A SettingError for a setting that contradicts the model, the data or another setting."""
    return SettingError(f"{setting}: {message}", code="conflicting_settings", field=setting)


Datasets = Path | Annotated[tuple[Path, ...], Field(min_length=1)]
"""One dataset, or a list of several."""


def paths_of(data: Datasets | None) -> tuple[Path, ...]:
    """The paths of one dataset or of several; () without a dataset."""
    return () if data is None else (data,) if isinstance(data, Path) else data


class TrainingData(Settings):
    """Training and validation data, in any supported format."""

    train: Datasets
    """Training dataset, or a list of datasets, such as [a, b]: all their images are used once per epoch."""
    val: Datasets | None = None
    """Validation dataset, or a list of datasets; without it `best` is the last checkpoint."""
    prompt: str | None = None
    """Phrase that replaces all phrases; all objects of an image are merged into one target."""
    conversations: Path | None = None
    """Conversations about images in LLaVA's format; `tasks.conversations` is their weight."""
    window: Window | None = None
    """Pixel values shown as black and white: `auto` (images of more than 8 bits from their lowest to their highest value,
    DICOM and NIfTI as their headers say), [low, high], or [percentile, p, q]. The model stores it as the default of its
    later predictions. None: the window of the initial model, or `auto`."""


class OptimSettings(Settings):
    """AdamW with warm-up and cosine decay to 0.001 times `lr`. Defaults are those of Sa2VA's published fine-tuning."""

    lr: float = Field(default=4e-5, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay of AdamW."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moments."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum gradient norm; larger gradients are clipped to it."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of the run in which the learning rate rises linearly to `lr`."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches per optimizer step."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average (EMA) of the weights, such as 0.99; the average is validated and saved. None:
    no EMA."""
    lr_multipliers: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Multiplier of `lr` per component: vision encoder, language model, language head, projector, SAM encoder, SAM
    decoder, new tokens. The default is 1."""

    @field_validator("lr_multipliers")
    @classmethod
    def _known_components(cls, multipliers: dict[str, float]) -> dict[str, float]:
        known = (*GROUPS, NEW_TOKENS)
        if unknown := [name for name in multipliers if name not in known]:
            raise ValueError(f"the model has no component {unknown[0]!r}; known: {', '.join(known)}")
        return multipliers


class ValidateSettings(Settings):
    """Validation schedule and metric."""

    every_epochs: int = Field(default=1, ge=1)
    """Epochs between validations."""
    limit: int | None = Field(default=None, ge=1)
    """Maximum number of validation samples, taken from the start; None: all."""
    metric: str = "dice"
    """Metric that selects the best checkpoint: any metric of `vesalius evaluate`, such as cldice or hd95_px."""
    patience: int | None = Field(default=None, ge=1)
    """Early stopping: number of validations without improvement after which the run ends; None: no early stopping."""
    figures: int = Field(default=4, ge=0)
    """Number of predictions drawn as figures at each validation, always of the same samples."""

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"is {metric!r}; known: {', '.join(METRICS)}")
        return metric


class RunSettings(Settings):
    """One training run. Give exactly one of `steps`, `epochs` and `minutes`."""

    synonyms: ClassVar[Mapping[str, list[str]]] = SYNONYMS
    model: str
    """Initial model: a bundle, a run or a model name; `unet` is a new U-Net with one channel per phrase."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random`: randomly initialized weights, for `tiny` and the U-Net only."""
    projector: Literal["kept", "fitted"] = "kept"
    """`fitted`: reinitialize the projector so that it separates the phrases of the data before training; use it for two or
    more phrases that are new to the model. `kept`: keep the initial model's projector."""
    data: TrainingData
    unet: UNetShape | None = None
    """Widths and patch size of a new U-Net (`model: unet`); None: the defaults of `UNetShape`."""
    trainable: TrainableSettings = TrainableSettings(preset="decoder")
    """Trainable components: the name of a preset, or a preset with LoRA sizes, 4-bit weights or gradient checkpointing."""
    loss: LossSettings = LossSettings()
    steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps."""
    epochs: int | None = Field(default=None, ge=1)
    """Number of passes over the training samples."""
    minutes: float | None = Field(default=None, gt=0)
    """Duration of training in minutes, without validation. A run limited by time is not exactly reproducible."""
    batch_size: int = Field(default=4, ge=1)
    """Images per batch and process; each image has all its phrases."""
    num_workers: int = Field(default=1, ge=0)
    """Threads that load batches ahead; 0 loads them in the main thread."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast to bfloat16; weights and optimizer state stay in float32."""
    optim: OptimSettings = OptimSettings()
    augment: AugmentSettings = AugmentSettings()
    tasks: TaskSettings = TaskSettings()
    validate_: ValidateSettings = Field(default=ValidateSettings(), alias="validate")
    save_every_minutes: float = Field(default=15.0, gt=0)
    """Minutes between checkpoints; each validation also writes one."""
    trackers: tuple[str, ...] | None = None
    """Experiment trackers of Accelerate: tensorboard, wandb, mlflow and others, with files in the run folder. None:
    TensorBoard if it is installed; []: no tracker."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Random seed; the same seed gives the same batches."""
    out: Path
    """The run folder."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [name for name in ("steps", "epochs", "minutes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of steps, epochs and minutes; got {', '.join(given) or 'none'}")
        return self

    @model_validator(mode="after")
    def _phrases_can_be_separated(self) -> Self:
        if self.projector == "fitted" and self.data.prompt is not None:
            raise ValueError(
                "projector: fitted separates phrases, but data.prompt replaces all of them by one; remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _text_can_be_learned(self) -> Self:
        tasks = self.tasks
        if (tasks.conversations or tasks.absent == "words") and self.trainable.preset in ("projector", "decoder"):
            raise ValueError(
                f"trainable preset {self.trainable.preset} does not train the language model: remove tasks.conversations and "
                "absent: words, or use preset lora, tokens, vision or full"
            )
        return self
