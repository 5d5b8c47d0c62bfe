"""Prediction speed, compared with the official procedure with the same weights and the same masks.

    .venv/bin/python benchmarks/predict.py [--model tiny] [--images 24] [--rounds 5] [--quick] [--json FILE]

The official side is a rewrite of `predict_forward` of the official code: one image and one prompt at a time, the
answer decoded token by token, and the image encoded again for each [SEG]. Our side is `Predictor.predict`. Both run
alternately in one process on the same synthetic images of 512 x 512, so that their ratio is valid on a busy machine; both
end with masks of the original size. `masks_equal` is the fraction of pixels with equal masks. Stages are timed by hooks
on the components of the model, which cost a few microseconds per call. Stages of images in parallel overlap, so their sum
may exceed the total.

The official side uses our processor and our model, so it benefits from most of their optimizations. Two components are
those of SAM 2's authors: the mask decoder, and the first layer of the encoder with its position embeddings. (Both sides
use our attention, because the redundant work in that of transformers is not in the authors' code.) The lower bound of the
time is one pass of SAM's encoder per image, which prompts cannot share any further.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path
from threading import Lock, get_ident
from typing import Any

import numpy as np
import torch
from transformers import Sam2VideoModel
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModel, Sam2PatchEmbeddings
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMaskDecoder

from vesalius.files import write_json
from vesalius.inference.predictor import MAX_NEW_TOKENS, Predictor
from vesalius.jobs.opening import load_predictor
from vesalius.mask_maps import LowRes
from vesalius.models.cpu_allocator import keep_freed_memory
from vesalius.models.cpu_parallel import map_on_cores
from vesalius.models.generation import generate_answer
from vesalius.models.hiera import Hiera, PatchEmbeddings
from vesalius.models.mask_decoder import MaskDecoder
from vesalius.models.vlm import vision_encoder_of
from vesalius.synth import draw
from vesalius.types import Item, Prediction

PROMPTS = ("blood vessel", "catheter", "guide wire", "rib")


@contextmanager
def as_written(sam: Sam2VideoModel) -> Iterator[None]:
    """Use the mask decoder and first encoder layer of SAM 2's authors, in the version of transformers, inside the block."""
    theirs = {Hiera: Sam2HieraDetModel, PatchEmbeddings: Sam2PatchEmbeddings, MaskDecoder: Sam2VideoMaskDecoder}
    changed = [(module, type(module)) for module in sam.modules() if type(module) in theirs]
    for module, kind in changed:
        module.__class__ = theirs[kind]
    try:
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind


@torch.inference_mode()
def predict_officially(predictor: Predictor, items: list[Item]) -> list[np.ndarray]:
    """A mask bool (h, w) for each (item, prompt), without sharing any computation between prompts."""
    model, processor = predictor.model, predictor.processor
    masks = []
    for item in items:
        for prompt in item.prompts:
            batch = processor([Item(item.id, item.frames, (prompt,))])
            answer = generate_answer(model, batch, processor.stop_id, MAX_NEW_TOKENS, official=True)
            mask = np.zeros(item.size, dtype=bool)
            for i in range(len(answer.seg.row)):
                one = type(answer.seg)(answer.seg.embedding[i : i + 1], answer.seg.row[:1], answer.seg.image[:1])
                decoded = model.decode(batch.g_pixel_values, one)
                prediction = Prediction(
                    item.id,
                    prompt,
                    "ok",
                    item.size,
                    LowRes(decoded.logits.numpy(), processor.spec.sam_size),
                    threshold=predictor.threshold,
                )
                mask |= prediction.mask
            masks.append(mask)
    return masks


def encode_alone(predictor: Predictor, items: list[Item]) -> Callable[[], object]:
    """A function that runs only SAM's encoder over the images, as in `Predictor.predict`."""
    squares = [predictor.processor.preprocess(item).square for item in items]
    batches = [squares[i : i + predictor.batch_size] for i in range(0, len(squares), predictor.batch_size)]

    def encode(part: list[torch.Tensor]) -> None:
        predictor.model.sam.vision_encoder.backbone(torch.stack(part))

    def run() -> None:
        for batch in batches:
            size = len(batch) // gcd(len(batch), torch.get_num_threads())
            map_on_cores(encode, [batch[i : i + size] for i in range(0, len(batch), size)])

    return run


@dataclass
class Stages:
    """Time and number of calls of each component of a model."""

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    @contextmanager
    def watch(self, predictor: Predictor) -> Iterator[None]:
        """Count calls inside the block."""
        model = predictor.model
        parts = {
            "vision encoder": vision_encoder_of(model.vlm),
            "language model": model.vlm.model.language_model,
            "SAM encoder": model.sam.vision_encoder.backbone,
            "SAM decoder": model.sam.mask_decoder,
        }
        hooks = [hook for name, part in parts.items() for hook in self._hooks(name, part)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, name: str, part: torch.nn.Module) -> list[Any]:
        begun: dict[int, float] = {}

        def start(*_: Any) -> None:
            begun[get_ident()] = time.perf_counter()

        def end(*_: Any) -> None:
            took = time.perf_counter() - begun[get_ident()]
            with self.lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + took
                self.calls[name] = self.calls.get(name, 0) + 1

        return [part.register_forward_pre_hook(start), part.register_forward_hook(end)]


def compare(predictor: Predictor, items: list[Item], rounds: int) -> dict[str, Any]:
    """Time per image of both sides, their ratio, and the fraction of pixels with equal masks."""
    took: dict[str, list[float]] = {"official": [], "ours": [], "encoder": []}
    stages = {"official": Stages(), "ours": Stages()}
    equal = total = 0
    encode = encode_alone(predictor, items)

    def official() -> list[np.ndarray]:
        with as_written(predictor.model.sam):
            return predict_officially(predictor, items)

    sides = {"official": official, "ours": lambda: [prediction.mask for prediction in predictor.predict(items)]}
    for number in range(rounds + 1):
        masks = {}
        for name, run in sides.items():
            with stages[name].watch(predictor):
                started = time.perf_counter()
                masks[name] = run()
                took[name].append(time.perf_counter() - started)
        started = time.perf_counter()
        encode()
        took["encoder"].append(time.perf_counter() - started)
        if number == 0:  # warm-up, and comparison of the masks
            equal = sum(int((a == b).sum()) for a, b in zip(masks["official"], masks["ours"], strict=True))
            total = sum(mask.size for mask in masks["ours"])
            for times in took.values():
                times.clear()
            for name in sides:
                stages[name].seconds.clear()
                stages[name].calls.clear()
    n = len(items)
    ratios = [theirs / ours for theirs, ours in zip(took["official"], took["ours"], strict=True)]
    row: dict[str, Any] = {"prompts": len(items[0].prompts), "ratio": statistics.median(ratios)}
    row |= {"ratios": [round(ratio, 3) for ratio in ratios], "masks_equal": equal / total}
    for name in sides:
        row[name] = {
            "ms_per_image": 1000 * statistics.median(took[name]) / n,
            "ms_of_stage": {part: 1000 * s / n / rounds for part, s in stages[name].seconds.items()},
            "calls_per_image": {part: calls / n / rounds for part, calls in stages[name].calls.items()},
        }
    row["ms_of_sam_encoder_alone"] = 1000 * statistics.median(took["encoder"]) / n
    floors = [theirs / alone for theirs, alone in zip(took["official"], took["encoder"], strict=True)]
    row["ratio_of_the_encoder_alone"] = statistics.median(floors)
    return row


def main() -> None:
    """Compare with one and with four prompts per image, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="8 images, 2 rounds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    images, rounds = (8, 2) if args.quick else (args.images, args.rounds)
    keep_freed_memory()
    predictor = load_predictor(args.model, batch_size=args.batch_size)
    assert isinstance(predictor, Predictor)
    frames = [draw(9, i).frames for i in range(images)]
    rows = []
    for n in (1, 4):
        items = [Item(str(i), each, PROMPTS[:n]) for i, each in enumerate(frames)]
        rows.append(compare(predictor, items, rounds))
        _print(rows[-1])
    if args.json:
        write_json(
            args.json,
            {
                "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
                "model": args.model,
                "settings": dict(predictor.description.settings)
                | {"batch_size": args.batch_size, "images": images, "rounds": rounds},
                "ratio_1_prompt": rows[0]["ratio"],
                "ratio_4_prompts": rows[1]["ratio"],
                "masks_equal": min(row["masks_equal"] for row in rows),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "rows": rows,
            },
        )


def _print(row: dict[str, Any]) -> None:
    print(f"{row['prompts']} prompts: {row['ratio']:.2f} x, masks equal at {100 * row['masks_equal']:.4f} % of pixels")
    print(f"{'':18}{'official ms':>12}{'calls':>7}{'ours ms':>10}{'calls':>7}   per image")
    for part in row["official"]["ms_of_stage"]:
        cells = [
            (row[side]["ms_of_stage"].get(part, 0.0), row[side]["calls_per_image"].get(part, 0.0))
            for side in ("official", "ours")
        ]
        print(f"{part:18}{cells[0][0]:12.1f}{cells[0][1]:7.2f}{cells[1][0]:10.1f}{cells[1][1]:7.2f}")
    print(
        f"{'all':18}{row['official']['ms_per_image']:12.1f}{'':7}{row['ours']['ms_per_image']:10.1f}\n"
        f"SAM's encoder alone: {row['ms_of_sam_encoder_alone']:.1f} ms per image, which would be "
        f"{row['ratio_of_the_encoder_alone']:.2f} x",
        flush=True,
    )


if __name__ == "__main__":
    main()
