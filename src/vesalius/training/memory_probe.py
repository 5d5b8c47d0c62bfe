"""The memory probe: does the heaviest step of the run fit, before an hour is spent on finding out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from vesalius.data.dataset import load_item
from vesalius.data.decoders.picture import SUFFIXES
from vesalius.errors import TrainingError, VesaliusError
from vesalius.inference.plan import make_plan
from vesalius.masks import Size
from vesalius.training.sharding import is_sharded
from vesalius.types import Item, Sample

if TYPE_CHECKING:
    from vesalius.training.loop import Run

CANDIDATES = 16
"""Samples of the largest area, and as many of the longest shape, that are prepared to find the heaviest."""
SHORTAGES = ("out of memory", "not enough memory", "can't allocate memory")
GIB = 2**30


def probe_memory(run: Run) -> str:
    """One sentence: how much memory the heaviest step takes on this GPU. TrainingError, saying what to lower, where it does not fit.

    Two steps of the optimizer, as what it remembers is there from the second on; afterwards weights, buffers, optimizer
    and random numbers are as they were, to the bit.
    """
    device = run.engine.device
    items = heaviest(run, run.settings.batch_size)
    questions = sum(len(item.prompts) for item in items)
    what = f"the heaviest batch ({len(items)} images, {questions} questions)"
    torch.cuda.reset_peak_memory_stats(device)
    take_steps(run, items, what)
    peak, total = torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    torch.cuda.reset_peak_memory_stats(device)
    return f"memory probe: {peak / GIB:.1f} of {total / GIB:.1f} GiB at most, with {what}"


def take_steps(run: Run, items: Sequence[Item], what: str = "this batch") -> None:
    """Two steps on the items that allocate what real ones do and change nothing; TrainingError where memory runs out."""
    device, optimizer = run.engine.device, run.optimizer
    buffers = {name: buffer.clone() for name, buffer in run.learner.module.named_buffers()}
    rates = [group["lr"] for group in optimizer.param_groups]
    was_training = run.learner.module.training
    run.learner.module.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            batch = run.learner.make_batch(items, [0] * sum(len(item.prompts) for item in items))
            for _ in range(2):
                # the second batch of a step meets the gradients of the first
                for _ in range(min(2, run.settings.optim.gradient_accumulation_steps)):
                    run.engine.backward(run.learner.losses(run.model, batch.to(device))["total"])
                _step_without_moving(run)
    except (RuntimeError, MemoryError) as error:
        if not any(words in str(error).lower() for words in SHORTAGES):
            raise
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"memory runs out with {what}: {_advice(run)} ({reason})") from error
    finally:
        optimizer.zero_grad()
        optimizer.state.clear()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for name, buffer in run.learner.module.named_buffers():
            buffer.copy_(buffers[name])
        run.learner.module.train(was_training)


def _step_without_moving(run: Run) -> None:
    """The optimizer's step with rate and gradients of 0: it allocates, and x * 1 + 0 is x to the bit."""
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.zero_()
    run.optimizer.step()
    run.optimizer.zero_grad()


def heaviest(run: Run, count: int) -> list[Item]:
    """The items of a batch that takes as much memory as any: of many questions on large images, or long ones, or clips.

    Of each task beside referring segmentation the first few examples of the first epoch are looked at.
    """
    mixture, most = run.feed.mixture, max(count, CANDIDATES)
    numbers = range(len(mixture))
    samples = {number: mixture.samples[number] for number in numbers if number < len(mixture.samples)}
    sizes = {number: _size_of(sample) for number, sample in samples.items()}

    def area(number: int) -> tuple[float, int]:
        prompts = samples[number].prompts
        return len(prompts) * sizes[number][0] * sizes[number][1], max(map(len, prompts))

    def length(number: int) -> tuple[float, int]:  # a family with tiles cuts a long image into more of them
        prompts = samples[number].prompts
        return len(prompts) * max(sizes[number]) / min(sizes[number]), max(map(len, prompts))

    chosen = {each for key in (area, length) for each in sorted(samples, key=key, reverse=True)[:most]}
    tasks: Counter[str] = Counter()
    for number in numbers[len(samples) :]:
        task, _ = mixture.task_of(number)
        tasks[task] += 1
        if tasks[task] <= CANDIDATES:
            chosen.add(number)
    weights = {number: _weigh(run, _load(run, number)) for number in sorted(chosen)}
    return [_load(run, number) for number in sorted(weights, key=weights.__getitem__, reverse=True)[:count]]


def _load(run: Run, number: int) -> Item:
    rng = np.random.default_rng([run.settings.seed, 0, number])
    return run.feed.mixture.load(number, run.settings.seed, 0, rng)


def _weigh(run: Run, item: Item) -> int:
    """Bytes of the batch of one item, times its questions."""
    questions = max(1, len(item.prompts))
    batch = run.learner.make_batch([item], [0] * len(item.prompts))
    values: list[Any] = [getattr(batch, field.name) for field in fields(batch)] if is_dataclass(batch) else []
    tensors = [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]
    return questions * sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))


def _size_of(sample: Sample) -> Size:
    """(h, w), from the head of the file where that is an image."""
    if sample.size is not None:
        return sample.size
    if sample.image.suffix.lower() not in SUFFIXES:
        return load_item(sample).size
    with Image.open(sample.image) as image:
        return image.height, image.width


def _advice(run: Run) -> str:
    """What to lower, with the plan's numbers where it can make one."""
    settings = run.settings
    what = json.dumps(settings.trainable.model_dump(mode="json", exclude_none=True))
    wanted = [
        f"batch_size={settings.batch_size}",
        f"trainable={what}",
        f"sharded={is_sharded(run.learner.module)}",
    ]
    if settings.precision == "bf16":
        wanted.append("dtype=bfloat16")
    try:
        plan = make_plan(settings.model, purpose="train", changes=wanted)
    except VesaliusError as error:
        return f"lower batch_size (now {settings.batch_size}), or let less train (trainable); no plan could be made: {error}"
    remedies = (
        "; or ".join(plan.remedies)
        or f"batch_size={max(1, settings.batch_size // 2)} instead of {settings.batch_size}"
    )
    return f"the plan counts {plan.need / GIB:.1f} GiB; what would help: {remedies}"
