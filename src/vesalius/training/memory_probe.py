"""Memory probe: run the heaviest training step before the run, to find out early whether it fits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vesalius.data.dataset import load_item
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.errors import TrainingError, VesaliusError
from vesalius.inference.plan import make_plan
from vesalius.masks import Size
from vesalius.training.context import TrainingContext
from vesalius.training.sharding import is_sharded
from vesalius.types import Item, Sample

CANDIDATES = 16
"""Number of samples with the largest area, and of samples with the longest shape, that are loaded to find the heaviest."""
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
GIB = 2**30


def probe_memory(context: TrainingContext) -> str:
    """One sentence: peak GPU memory of the heaviest step. TrainingError with remedies if it does not fit.

    Two optimizer steps are run, because the optimizer state exists from the second on. Weights, buffers, optimizer and
    random numbers are restored bit for bit.
    """
    device = context.process.device
    items = heaviest_items(context, context.settings.batch_size)
    questions = sum(len(item.prompts) for item in items)
    what = f"the heaviest batch ({len(items)} images, {questions} questions)"
    torch.cuda.reset_peak_memory_stats(device)
    run_steps(context, items, what)
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    torch.cuda.reset_peak_memory_stats(device)
    return f"memory probe: peak {peak / GIB:.1f} of {total / GIB:.1f} GiB with {what}"


def run_steps(context: TrainingContext, items: Sequence[Item], what: str = "this batch") -> None:
    """Two optimizer steps on the items with the memory use of real ones, which change nothing.

    TrainingError if memory runs out.
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
                # with accumulation, the second batch of a step is computed beside the gradients of the first
                for _ in range(min(2, context.settings.optim.gradient_accumulation_steps)):
                    losses = context.learner.losses(context.model, batch.to(device))
                    context.process.backward(losses["total"])
                _step_without_effect(optimizer)
    except (RuntimeError, MemoryError) as error:
        if not any(words in str(error).lower() for words in OUT_OF_MEMORY):
            raise
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"memory runs out with {what}: {_remedies(context)} ({reason})",
            code="out_of_memory",
            field="batch_size",
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
    """An optimizer step with learning rate 0 and zero gradients: it allocates its state, and x * 1 + 0 equals x."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.zero_()
    optimizer.step()
    optimizer.zero_grad()


def heaviest_items(context: TrainingContext, count: int) -> list[Item]:
    """The `count` examples that need the most memory: many phrases on large or long images, clips, conversations.

    Of each task besides segmentation, the first 16 examples of the first epoch are candidates.
    """
    mixture, most = context.loader.mixture, max(count, CANDIDATES)
    numbers = range(len(mixture))
    samples = {number: mixture.samples[number] for number in numbers if number < len(mixture.samples)}
    sizes = {number: _size_of(sample) for number, sample in samples.items()}

    def area(number: int) -> tuple[float, int]:
        prompts = samples[number].prompts
        return len(prompts) * sizes[number][0] * sizes[number][1], max(map(len, prompts))

    # model families with tiles cut a long image into more of them
    def elongation(number: int) -> tuple[float, int]:
        prompts = samples[number].prompts
        return len(prompts) * max(sizes[number]) / min(sizes[number]), max(map(len, prompts))

    candidates = {
        each for key in (area, elongation) for each in sorted(samples, key=key, reverse=True)[:most]
    }
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
    """Bytes of the batch of one item, times its number of phrases."""
    batch = context.learner.make_batch([item], [0] * len(item.prompts))
    values: list[Any] = [getattr(batch, field.name) for field in fields(batch)] if is_dataclass(batch) else []
    tensors = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    return max(1, len(item.prompts)) * sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))


def _size_of(sample: Sample) -> Size:
    """(h, w), from the file header if the sample is an image file."""
    if sample.size is not None:
        return sample.size
    if sample.image.suffix.lower() not in SUFFIXES:
        return load_item(sample).size
    with Image.open(sample.image) as image:
        return image.height, image.width


def _remedies(context: TrainingContext) -> str:
    """What to change so that the step fits, with the numbers of `vesalius plan` if it can make a plan."""
    settings = context.settings
    trainable = json.dumps(settings.trainable.model_dump(mode="json", exclude_none=True))
    sharded = is_sharded(context.learner.module)
    changes = [f"batch_size={settings.batch_size}", f"trainable={trainable}", f"sharded={sharded}"]
    if settings.precision == "bf16":
        changes.append("dtype=bfloat16")
    try:
        plan = make_plan(settings.model, purpose="train", changes=changes)
    except VesaliusError as error:
        return f"lower batch_size (now {settings.batch_size}) or train less (trainable); no plan could be made: {error}"
    remedies = "; or ".join(plan.remedies) or (
        f"batch_size={max(1, settings.batch_size // 2)} instead of {settings.batch_size}"
    )
    return f"the plan needs {plan.need / GIB:.1f} GiB; what would help: {remedies}"
