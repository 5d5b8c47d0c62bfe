"""A CPU's cores shared out among images, each of which then has some to itself.

Operations on one image are too short to keep several cores busy; images side by side do (`benchmarks/predict.py`). Only
work without state belongs here: the making of pixels, and SAM 2 on single images. The language model keeps hooks and
the turn of its keys in its modules while it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import gcd
from typing import TypeVar

import torch

from vesalius.models.answering import SegPrompts
from vesalius.models.textseg import MaskLogits

Job = TypeVar("Job")
Result = TypeVar("Result")

Decode = Callable[[Sequence[torch.Tensor], SegPrompts], MaskLogits]
"""Squares float (3, S, S) and the [SEG] of each to their masks: `TextSegModel.decode`."""


def map_on_cores(work: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """`work` on each job, without gradient, in the order of the jobs; the cores are PyTorch's threads of this thread.

    As many jobs at a time as divide both jobs and cores, so that none waits; where only 1 does, one after the other
    here, on all cores. An exception of `work` is raised here once no job runs.
    """
    cores = torch.get_num_threads()
    threads = gcd(len(jobs), cores)
    if not jobs or threads == 1:
        return [_without_gradient(work, job) for job in jobs]
    try:
        with ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(cores // threads,)
        ) as pool:
            return list(pool.map(partial(_without_gradient, work), jobs))
    finally:
        # it is of each thread alone, but what was set last is also what new threads begin with
        torch.set_num_threads(cores)


@torch.inference_mode()
def _without_gradient(work: Callable[[Job], Result], job: Job) -> Result:
    return work(job)


def decode_on_cores(decode: Decode, squares: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
    """As `decode`, but on a CPU with a part of the images on each core, or cores; on a GPU all are together."""
    images = seg.image.unique()
    parts = gcd(len(images), torch.get_num_threads()) if seg.image.device.type == "cpu" else 1
    if parts < 2 or not len(images):
        return decode(squares, seg)

    def decode_part(part: torch.Tensor) -> MaskLogits:
        mine = torch.isin(seg.image, part)
        return decode(squares, SegPrompts(seg.embedding[mine], seg.row[mine], seg.image[mine]))

    # [SEG] come in order of the questions, and those in order of the images: so do the parts
    decoded = map_on_cores(decode_part, images.tensor_split(parts))
    return MaskLogits(
        *(torch.cat(maps) for maps in zip(*(vars(part).values() for part in decoded), strict=True))
    )
