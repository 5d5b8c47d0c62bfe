"""Ablation of the optimizations of prediction: slowdown without each of them, with all others kept.

    .venv/bin/python benchmarks/predict_ideas.py [--model tiny] [--images 16] [--rounds 7] [--quick] [--json FILE]

Each optimization is removed alone, by a setting of `Predictor` or by a plain rewrite in this file. All variants run
round-robin in one process on the same synthetic images. `slower` is the median over rounds of the time without the
optimization, divided by the time with all of them. The gains do not add up, because optimizations overlap. `masks_equal`
is the fraction of pixels with equal masks. `keep_freed_memory` is not tested, because a process cannot undo it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import nn

from vesalius.files import write_json
from vesalius.inference import predictor as predictor_module
from vesalius.inference.predictor import Predictor
from vesalius.jobs.opening import load_predictor
from vesalius.models import generation, pixels, processor, sam2
from vesalius.models.cpu_allocator import keep_freed_memory
from vesalius.models.cpu_parallel import Decode
from vesalius.models.hiera import Hiera, PatchEmbeddings, WindowAttention
from vesalius.models.mask_decoder import MaskDecoder
from vesalius.models.sam2 import MaskLogits, SegPrompts
from vesalius.models.vlm import run_language_model
from vesalius.synth import draw
from vesalius.types import Item

PROMPTS = ("blood vessel", "catheter", "guide wire", "rib")

Change = Callable[[Predictor, list[Item], ExitStack], tuple[Predictor, list[Item]]]
"""Function that removes an optimization until the stack is closed, and returns the predictor and the items to measure."""


def all_kept(predictor: Predictor, items: list[Item], _: ExitStack) -> tuple[Predictor, list[Item]]:
    """Remove nothing."""
    return predictor, items


def token_by_token(predictor: Predictor, items: list[Item], stack: ExitStack) -> tuple[Predictor, list[Item]]:
    """Decode answers token by token instead of drafting and verifying them."""
    stack.enter_context(patch.object(predictor, "answer", "generate"))
    return predictor, items


def alone(predictor: Predictor, items: list[Item], stack: ExitStack) -> tuple[Predictor, list[Item]]:
    """Predict one image at a time."""
    stack.enter_context(patch.object(predictor, "batch_size", 1))
    return predictor, items


def image_a_question(predictor: Predictor, items: list[Item], _: ExitStack) -> tuple[Predictor, list[Item]]:
    """Encode the image again for each prompt."""
    return predictor, [Item(item.id, item.frames, (prompt,)) for item in items for prompt in item.prompts]


def words_a_question(predictor: Predictor, items: list[Item], stack: ExitStack) -> tuple[Predictor, list[Item]]:
    """Let the language model read the image tokens again for each prompt."""

    def read(vlm: Any, inputs: Any, _: Any, seg_before_norm: bool, cache: Any) -> Any:
        return run_language_model(vlm, inputs, seg_before_norm, cache), inputs

    stack.enter_context(patch.object(generation, "prefill", read))
    return predictor, items


def encoding_a_seg(predictor: Predictor, items: list[Item], stack: ExitStack) -> tuple[Predictor, list[Item]]:
    """Let SAM encode the image again for each [SEG]."""

    def decode_each(decode: Decode, squares: Sequence[torch.Tensor], seg: SegPrompts) -> MaskLogits:
        rows = [slice(i, i + 1) for i in range(len(seg.row))]
        made = [decode(squares, SegPrompts(seg.embedding[i], seg.row[i], seg.image[i])) for i in rows]
        return MaskLogits(*(torch.cat(maps) for maps in zip(*(vars(each).values() for each in made), strict=True)))

    stack.enter_context(patch.object(predictor_module, "decode_on_cores", decode_each))
    return predictor, items


def one_by_one(predictor: Predictor, items: list[Item], stack: ExitStack) -> tuple[Predictor, list[Item]]:
    """Use all cores for one operation at a time instead of one image per core."""
    together = lambda decode, squares, seg: decode(squares, seg)  # noqa: E731
    in_turn = lambda work, jobs: [work(job) for job in jobs]  # noqa: E731
    stack.enter_context(patch.object(predictor_module, "decode_on_cores", together))
    stack.enter_context(patch.object(predictor_module, "map_on_cores", in_turn))
    return predictor, items


def two_convolutions(predictor: Predictor, items: list[Item], stack: ExitStack) -> tuple[Predictor, list[Item]]:
    """Run the convolutions of neck and decoder on the fine levels separately instead of merged into one."""

    def convolve(first: nn.Module, second: nn.Module, level: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = second(first(level.permute(0, 3, 1, 2)))
        return made

    stack.enter_context(patch.object(sam2, "_convolve_twice", convolve))
    return predictor, items


def many_copies(predictor: Predictor, items: list[Item], stack: ExitStack) -> tuple[Predictor, list[Item]]:
    """Normalize pixels with a new array for each step."""
    mean, deviation = pixels.MEAN.flatten().numpy(), pixels.DEVIATION.flatten().numpy()

    def normalize(image: Image.Image) -> torch.Tensor:
        values = (np.asarray(image, dtype=np.float32) / 255 - mean) / deviation
        return torch.from_numpy(values.transpose(2, 0, 1).copy())

    for module in (pixels, processor):
        stack.enter_context(patch.object(module, "normalize", normalize))
    return predictor, items


def as_transformers(*parts: type[nn.Module]) -> Change:
    """Use the transformers version of these modules of SAM."""

    def take_out(predictor: Predictor, items: list[Item], stack: ExitStack) -> tuple[Predictor, list[Item]]:
        for module in predictor.model.sam.modules():
            if (kind := type(module)) in parts:
                module.__class__ = kind.__base__
                stack.callback(setattr, module, "__class__", kind)
        return predictor, items

    return take_out


IDEAS: dict[str, Change] = {
    "all": all_kept,
    "answers drafted and verified": token_by_token,
    "images in batches": alone,
    "one image encoding for all questions": image_a_question,
    "image tokens read once": words_a_question,
    "SAM features shared by all [SEG]": encoding_a_seg,
    "images in parallel on the cores": one_by_one,
    "no unused attention": as_transformers(WindowAttention),
    "channels-last patches": as_transformers(Hiera, PatchEmbeddings),
    "decoder shared by the prompts of an image": as_transformers(MaskDecoder),
    "two convolutions in one": two_convolutions,
    "in-place normalization of pixels": many_copies,
}


@contextmanager
def without(idea: str, predictor: Predictor, items: list[Item]) -> Iterator[tuple[Predictor, list[Item]]]:
    """Remove the optimization inside the block; yields the predictor and the items to measure."""
    with ExitStack() as stack:
        yield IDEAS[idea](predictor, items, stack)


def measure(predictor: Predictor, items: list[Item], rounds: int) -> list[dict[str, Any]]:
    """One row for each optimization."""
    took: dict[str, list[float]] = {idea: [] for idea in IDEAS}
    masks: dict[str, list[np.ndarray]] = {}
    for number in range(rounds + 1):
        for idea, times in took.items():
            with without(idea, predictor, items) as (changed, changed_items):
                started = time.perf_counter()
                masks[idea] = [prediction.mask for prediction in changed.predict(changed_items)]
                if number:  # round 0 is a warm-up
                    times.append(time.perf_counter() - started)
    whole = took["all"]
    total = sum(mask.size for mask in masks["all"])
    return [
        {
            "idea": idea,
            "prompts": len(items[0].prompts),
            "ms_per_image_without": 1000 * statistics.median(times) / len(items),
            "slower": statistics.median(each / all_on for each, all_on in zip(times, whole, strict=True)),
            "masks_equal": sum(int((a == b).sum()) for a, b in zip(masks[idea], masks["all"], strict=True)) / total,
        }
        for idea, times in took.items()
    ]


def main() -> None:
    """Remove each optimization, for one and four prompts per image, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="8 images, 2 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    images, rounds = (8, 2) if args.quick else (args.images, args.rounds)
    keep_freed_memory()
    predictor = load_predictor(args.model, batch_size=args.batch_size)
    assert isinstance(predictor, Predictor)
    rows = []
    for n in (1, 4):
        items = [Item(str(i), draw(9, i).frames, PROMPTS[:n]) for i in range(images)]
        for row in measure(predictor, items, rounds):
            rows.append(row)
            print(
                f"{row['prompts']} prompts  {row['idea']:42}{row['ms_per_image_without']:8.1f} ms without  "
                f"{row['slower']:.3f} x  masks equal {100 * row['masks_equal']:.4f} %",
                flush=True,
            )
    if args.json:
        settings = dict(predictor.description.settings) | {
            "batch_size": args.batch_size,
            "images": images,
            "rounds": rounds,
        }
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        write_json(args.json, {"machine": machine, "model": args.model, "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
