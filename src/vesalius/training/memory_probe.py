"""Memory probe: run the training step with the highest memory use first, so that the run does not fail later."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from vesalius.data.dataset import load_item
from vesalius.data.decoders.picture import SUFFIXES, is_turned
from vesalius.errors import TrainingError, VesaliusError
from vesalius.inference.plan import make_plan
from vesalius.masks import Size
from vesalius.training.context import TrainingContext
from vesalius.training.sharding import is_sharded
from vesalius.types import Item, Sample

CANDIDATES = 16
"""The heaviest batch is searched among the 16 samples with the largest area and the 16 with the largest aspect ratio."""
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
GIB = 2**30


def probe_memory(context: TrainingContext) -> str:
    """Peak GPU memory of the heaviest step, in one sentence. Raises TrainingError with remedies if it does not fit.

    Two optimizer steps are run, because the first one allocates the optimizer state. Weights, buffers, optimizer and
    random states are restored bit for bit.
    """
    device = context.process.device
    items = heaviest_items(context, context.settings.batch_size)
    prompts = sum(len(item.prompts) for item in items)
    what = f"the heaviest batch ({len(items)} images, {prompts} prompts)"
    torch.cuda.reset_peak_memory_stats(device)
    run_steps(context, items, what)
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    torch.cuda.reset_peak_memory_stats(device)
    return f"memory probe: peak {peak / GIB:.1f} of {total / GIB:.1f} GiB with {what}"


def run_steps(context: TrainingContext, items: Sequence[Item], what: str = "this batch") -> None:
    """Run two optimizer steps that use as much memory as real ones but leave model and optimizer unchanged.

    Raises TrainingError with remedies if memory runs out; `what` names the batch in its message.
    """
    device, optimizer, module = context.process.device, context.optimizer, context.learner.module
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    rates = [group["lr"] for group in optimizer.param_groups]
    was_training = module.training
    module.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            batch = context.learner.make_batch(items, [0] * sum(len(item.prompts) for item in items))
            for _ in range(2):
                # with accumulation, a step's second batch is computed while the gradients of its first are in memory
                for _ in range(min(2, context.settings.optim.gradient_accumulation_steps)):
                    losses = context.learner.losses(context.model, batch.to(device))
                    context.process.backward(losses["total"])
                _step_without_effect(optimizer)
    except (RuntimeError, MemoryError) as error:
        if not any(words in str(error).lower() for words in OUT_OF_MEMORY):
            raise
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"memory runs out with {what}: {_remedies(context)} ({reason})", code="out_of_memory", field="batch_size"
        ) from error
    finally:
        optimizer.zero_grad()
        optimizer.state.clear()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
        module.train(was_training)


def _step_without_effect(optimizer: torch.optim.Optimizer) -> None:
    """Run an optimizer step that allocates its state but changes no weight: learning rate and gradients are 0."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.zero_()
    optimizer.step()
    optimizer.zero_grad()


def heaviest_items(context: TrainingContext, count: int) -> list[Item]:
    """The `count` examples with the largest batches, which need the most memory.

    Candidates are the samples with the largest product of phrases and image area, or of phrases and aspect ratio, and the
    first 16 examples of each other task.
    """
    mixture, most = context.loader.mixture, max(count, CANDIDATES)
    numbers = range(len(mixture))
    samples = dict(enumerate(mixture.samples))
    sizes = {number: _size_of(sample) for number, sample in samples.items()}
    candidates: set[int] = set()
    # the aspect ratio counts because model families with tiles use more of them for an elongated image
    for extent in (lambda h, w: h * w, lambda h, w: max(h, w) / min(h, w)):
        ranks = {
            number: (len(sample.prompts) * extent(*sizes[number]), max(map(len, sample.prompts)))
            for number, sample in samples.items()
        }
        candidates.update(sorted(ranks, key=ranks.__getitem__, reverse=True)[:most])
    tasks: Counter[str] = Counter()
    for number in numbers[len(samples) :]:
        task, _ = mixture.task_of(number)
        tasks[task] += 1
        if tasks[task] <= CANDIDATES:
            candidates.add(number)
    weights = {number: _batch_bytes(context, _load(context, number)) for number in sorted(candidates)}
    chosen = sorted(weights, key=weights.__getitem__, reverse=True)[:count]
    return [_load(context, number) for number in chosen]


def _load(context: TrainingContext, number: int) -> Item:
    seed = context.settings.seed
    return context.loader.mixture.load(number, seed, 0, np.random.default_rng([seed, 0, number]))


def _batch_bytes(context: TrainingContext, item: Item) -> int:
    """Size of the batch of one item in bytes, times its number of phrases."""
    batch = context.learner.make_batch([item], [0] * len(item.prompts))
    values: list[Any] = [getattr(batch, field.name) for field in fields(batch)] if is_dataclass(batch) else []
    tensors = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    return max(1, len(item.prompts)) * sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))


def _size_of(sample: Sample) -> Size:
    """Image size (h, w), read from the file header if possible."""
    if sample.size is not None:
        return sample.size
    if sample.image.suffix.lower() in SUFFIXES and not is_turned(sample.image):
        with suppress(UnidentifiedImageError), Image.open(sample.image) as image:  # tifffile reads TIFF of floats
            return image.height, image.width
    return load_item(sample).size


def _remedies(context: TrainingContext) -> str:
    """Settings that reduce memory, from `vesalius plan` if it supports the model."""
    settings = context.settings
    trainable = json.dumps(settings.trainable.model_dump(mode="json", exclude_none=True))
    sharded = is_sharded(context.learner.module)
    changes = [f"batch_size={settings.batch_size}", f"trainable={trainable}", f"sharded={sharded}"]
    if settings.precision == "bf16":
        changes.append("dtype=bfloat16")
    try:
        plan = make_plan(settings.model, purpose="train", changes=changes)
    except VesaliusError as error:
        return f"lower batch_size (now {settings.batch_size}) or train fewer components (trainable); no plan available: {error}"
    remedies = "; or ".join(plan.remedies) or (
        f"batch_size={max(1, settings.batch_size // 2)} instead of {settings.batch_size}"
    )
    return f"the plan needs {plan.need / GIB:.1f} GiB; remedies: {remedies}"
