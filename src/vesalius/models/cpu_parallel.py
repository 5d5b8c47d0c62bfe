"""A CPU's cores shared out among images, each of which then has some to itself.

Operations on one image are too short to keep several cores busy; images side by side do (`benchmarks/predict.py`,
`benchmarks/training_ratio.py`). Only work without state belongs here: the making of pixels, and SAM 2 on single images.
The language model keeps hooks and the turn of its keys in its modules while it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import gcd
from typing import Any, TypeVar

import torch
from torch.autograd.function import once_differentiable
from torch.distributed import is_available, is_initialized

from vesalius.models.segmenter import MaskLogits, SegPrompts

Job = TypeVar("Job")
Result = TypeVar("Result")

Decode = Callable[[Sequence[torch.Tensor], SegPrompts], MaskLogits]
"""Squares float (3, S, S) and the [SEG] of each to their masks: `TextSegModel.decode`."""


def map_on_cores(work: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """`work` on each job, without gradient, in the order of the jobs; the cores are PyTorch's threads of this thread.

    As many jobs at a time as divide both jobs and cores, so that none waits; where only 1 does, one after the other
    here, on all cores. An exception of `work` is raised here once no job runs.
    """
    return _map(partial(_without_gradient, work), jobs)


def _map(work: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    cores = torch.get_num_threads()
    threads = gcd(len(jobs), cores)
    if not jobs or threads == 1:
        return [work(job) for job in jobs]
    try:
        with ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(cores // threads,)
        ) as pool:
            return list(pool.map(work, jobs))
    finally:
        # it is of each thread alone, but what was set last is also what new threads begin with
        torch.set_num_threads(cores)


@torch.inference_mode()
def _without_gradient(work: Callable[[Job], Result], job: Job) -> Result:
    return work(job)


def decode_on_cores(decode: Decode, squares: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
    """As `decode`, but on a CPU with a part of the images on each core, or cores; on a GPU all are together."""
    parts = _parts(seg)
    if len(parts) < 2:
        return decode(squares, seg)
    return _in_order(_joined(map_on_cores(lambda mine: decode(squares, _of_part(seg, mine)), parts)), parts)


def train_on_cores(
    decode: Decode, squares: Sequence[torch.Tensor], seg: SegPrompts, parameters: Iterable[torch.nn.Parameter]
) -> MaskLogits:
    """As `decode_on_cores`, with gradients for `parameters`, which are those of `decode`, and for the [SEG].

    Backwards the parts are on the cores as well, and their gradients are added in order: the same sum each time. Where
    several processes train one model they have shared out the cores, and the images, among themselves.
    """
    parts = _parts(seg) if torch.is_grad_enabled() and not (is_available() and is_initialized()) else []
    if len(parts) < 2:
        return decode(squares, seg)

    def decode_part(mine: torch.Tensor, embedding: torch.Tensor) -> MaskLogits:
        return decode(squares, _of_part(replace(seg, embedding=embedding), mine))

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _in_order(MaskLogits(*_Parts.apply(decode_part, parts, seg.embedding, *trained)), parts)


class _Parts(torch.autograd.Function):
    """Each part has a graph of its own, from copies of the [SEG] to its masks, which is gone through where it lies."""

    @staticmethod
    def forward(
        ctx: Any,
        decode_part: Callable[[torch.Tensor, torch.Tensor], MaskLogits],
        parts: Sequence[torch.Tensor],
        embedding: torch.Tensor,
        *trained: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        precision = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")  # of each thread alone

        def run(mine: torch.Tensor) -> tuple[torch.Tensor, MaskLogits]:
            copy = embedding.detach().requires_grad_(embedding.requires_grad)
            with torch.enable_grad(), torch.autocast("cpu", *precision):
                return copy, decode_part(mine, copy)

        ctx.begun, ctx.trained = _map(run, parts), trained
        return tuple(part.detach() for part in vars(_joined([masks for _, masks in ctx.begun])).values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        begun, trained = ctx.begun, ctx.trained
        ctx.begun = ctx.trained = None
        counts = [len(masks.logits) for _, masks in begun]
        shares = zip(*(gradient.split(counts) for gradient in gradients), strict=True)

        def run(job: tuple[tuple[torch.Tensor, MaskLogits], tuple[torch.Tensor, ...]]) -> Any:
            (copy, masks), share = job
            found = [
                (out, grad)
                for out, grad in zip(vars(masks).values(), share, strict=True)
                if out.requires_grad
            ]
            inputs = [each for each in (copy, *trained) if each.requires_grad]
            outs, grads = zip(*found, strict=True)
            return torch.autograd.grad(outs, inputs, grads, allow_unused=True)

        sums = [
            None if all(each is None for each in of_one) else sum(each for each in of_one if each is not None)
            for of_one in zip(*_map(run, list(zip(begun, shares, strict=True))), strict=True)
        ]
        first = [] if begun[0][0].requires_grad else [None]
        return None, None, *first, *sums


def _parts(seg: SegPrompts) -> list[torch.Tensor]:
    """bool (m,) for each part of the images: which [SEG] are of it. One part, or none, where cores cannot be shared."""
    images = seg.image.unique()
    parts = gcd(len(images), torch.get_num_threads()) if seg.image.device.type == "cpu" and len(images) else 1
    return [torch.isin(seg.image, part) for part in images.tensor_split(parts)]


def _of_part(seg: SegPrompts, mine: torch.Tensor) -> SegPrompts:
    return SegPrompts(seg.embedding[mine], seg.row[mine], seg.image[mine])


def _joined(decoded: Sequence[MaskLogits]) -> MaskLogits:
    return MaskLogits(
        *(torch.cat(maps) for maps in zip(*(vars(part).values() for part in decoded), strict=True))
    )


def _in_order(joined: MaskLogits, parts: Sequence[torch.Tensor]) -> MaskLogits:
    """Part after part to the order of the [SEG]: those of a clip go through all its frames, one [SEG] after the other."""
    place = torch.cat([mine.nonzero()[:, 0] for mine in parts]).argsort()
    return MaskLogits(*(maps[place] for maps in vars(joined).values()))
