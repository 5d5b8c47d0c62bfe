"""Intra-batch CPU parallelism: the images of a batch are divided among the cores.

Operations on a single image are too small to keep several cores busy (`benchmarks/predict.py`,
`benchmarks/training_ratio.py`). Only stateless work runs in parallel: preprocessing, and SAM 2 on single images. The
language model does not, since its modules hold hooks and rotary frequencies during a forward pass.
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

from vesalius.models.sam2 import MaskLogits, SegPrompts

Given = TypeVar("Given")
Returned = TypeVar("Returned")

Decode = Callable[[Sequence[torch.Tensor], SegPrompts], MaskLogits]
"""Function like `TextSegModel.decode`: images float (3, S, S) and their [SEG] prompts to mask logits."""


def map_on_cores(work: Callable[[Given], Returned], jobs: Sequence[Given]) -> list[Returned]:
    """The results of `work` for each job, in order, computed without gradients on `torch.get_num_threads()` cores.

    The number of parallel jobs is the greatest common divisor of jobs and cores, so that no core idles; if it is 1, the
    jobs run one by one, each on all cores. An exception of `work` is raised once all running jobs have ended.
    """
    return _map(partial(_without_gradient, work), jobs)


def _map(work: Callable[[Given], Returned], jobs: Sequence[Given]) -> list[Returned]:
    cores = torch.get_num_threads()
    threads = gcd(len(jobs), cores)
    if not jobs or threads == 1:
        return [work(job) for job in jobs]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(cores // threads,)) as pool:
            return list(pool.map(work, jobs))
    finally:
        # the setting is per thread, but new threads start with the last value set
        torch.set_num_threads(cores)


@torch.inference_mode()
def _without_gradient(work: Callable[[Given], Returned], job: Given) -> Returned:
    return work(job)


def decode_on_cores(decode: Decode, squares: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
    """Run `decode` with the images divided among the CPU cores; on a GPU, on all images at once."""
    parts = _parts(seg)
    if len(parts) < 2:
        return decode(squares, seg)
    return _in_order(_joined(map_on_cores(lambda mine: decode(squares, _of_part(seg, mine)), parts)), parts)


def train_on_cores(
    decode: Decode, squares: Sequence[torch.Tensor], seg: SegPrompts, parameters: Iterable[torch.nn.Parameter]
) -> MaskLogits:
    """Like `decode_on_cores`, with gradients for the [SEG] embeddings and for `parameters`, the parameters of `decode`.

    The backward pass is parallel too and sums gradients in a fixed order, so results are reproducible. Distributed
    training does not parallelize here, since its processes already divide cores and images.
    """
    parts = _parts(seg) if torch.is_grad_enabled() and not (is_available() and is_initialized()) else []
    if len(parts) < 2:
        return decode(squares, seg)

    def decode_part(mine: torch.Tensor, embedding: torch.Tensor) -> MaskLogits:
        return decode(squares, _of_part(replace(seg, embedding=embedding), mine))

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return _in_order(MaskLogits(*_ParallelDecode.apply(decode_part, parts, seg.embedding, *trained)), parts)


class _ParallelDecode(torch.autograd.Function):
    """Decode all parts in parallel, each in its own autograd graph that starts at a copy of the [SEG] embeddings."""

    @staticmethod
    def forward(
        ctx: Any,
        decode_part: Callable[[torch.Tensor, torch.Tensor], MaskLogits],
        parts: Sequence[torch.Tensor],
        embedding: torch.Tensor,
        *trained: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        precision = (torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu"))  # autocast state is per thread

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
        by_part = zip(*(gradient.split(counts) for gradient in gradients), strict=True)

        def run(job: tuple[tuple[torch.Tensor, MaskLogits], tuple[torch.Tensor, ...]]) -> Any:
            (copy, masks), gradients_of_part = job
            found = [
                (out, grad)
                for out, grad in zip(vars(masks).values(), gradients_of_part, strict=True)
                if out.requires_grad
            ]
            inputs = [each for each in (copy, *trained) if each.requires_grad]
            outs, grads = zip(*found, strict=True)
            return torch.autograd.grad(outs, inputs, grads, allow_unused=True)

        sums = [
            None if all(each is None for each in of_one) else sum(each for each in of_one if each is not None)
            for of_one in zip(*_map(run, list(zip(begun, by_part, strict=True))), strict=True)
        ]
        first = [] if begun[0][0].requires_grad else [None]
        return None, None, *first, *sums


def _parts(seg: SegPrompts) -> list[torch.Tensor]:
    """The parts of the images as masks bool (m,) over the [SEG] prompts; at most one if the cores cannot be divided."""
    images = seg.image.unique()
    parts = gcd(len(images), torch.get_num_threads()) if seg.image.device.type == "cpu" and len(images) else 1
    return [torch.isin(seg.image, part) for part in images.tensor_split(parts)]


def _of_part(seg: SegPrompts, mine: torch.Tensor) -> SegPrompts:
    return SegPrompts(seg.embedding[mine], seg.row[mine], seg.image[mine])


def _joined(decoded: Sequence[MaskLogits]) -> MaskLogits:
    return MaskLogits(*(torch.cat(maps) for maps in zip(*(vars(part).values() for part in decoded), strict=True)))


def _in_order(joined: MaskLogits, parts: Sequence[torch.Tensor]) -> MaskLogits:
    """The masks of all parts, restored to the order of the [SEG] prompts."""
    order = torch.cat([mine.nonzero()[:, 0] for mine in parts]).argsort()
    return MaskLogits(*(maps[order] for maps in vars(joined).values()))
