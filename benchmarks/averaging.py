"""Mean Dice with an exponential moving average of the weights (`optim.ema_decay`) and with the weights of the last step.

    .venv/bin/python benchmarks/averaging.py [--data FOLDER] [--steps 300] [--decays 0.9 0.97 0.99] [--seeds 2] [--json FILE]

The shipped `tiny` is fine-tuned with `trainable: full`, once per seed and schedule (constant learning rate, cosine decay),
on FOLDER's annotations.train.json, with all objects of an image as one "blood vessel", or on synthetic angiograms. After
the last step the validation images are scored with the last weights and with each average of the same run. The effective
decay increases during a run and reaches 0.9 after 80 steps, 0.97 after 290, 0.99 after 890.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from vesalius.data.augment import AugmentSettings
from vesalius.data.dataset import open_dataset
from vesalius.files import write_json
from vesalius.models.checkpoint import open_model
from vesalius.models.cpu_allocator import keep_freed_memory
from vesalius.models.trainable import set_trainable
from vesalius.synth import write_dataset
from vesalius.training.ema import WeightAverage
from vesalius.training.learner import TextSegLearner
from vesalius.training.loader import Loader
from vesalius.training.losses import LossSettings
from vesalius.training.mixture import TaskSettings, open_mixture
from vesalius.training.validation import average, score_samples

LR = 5e-4


def measure(sets: tuple[Path, Path], steps: int, decays: list[float], seed: int, cosine: bool) -> dict[str, float]:
    """Mean Dice on the validation images with the last weights, and with each average."""
    torch.manual_seed(seed)
    opened = open_model("tiny")
    loss = LossSettings(text=0.1, bce=3.0, dice=1.0)
    learner = TextSegLearner(opened, set_trainable(opened.model, "full"), loss)
    prompt = "blood vessel" if sets[0].suffix else None
    train, val = (open_dataset(each, prompt=prompt).annotated().samples for each in sets)
    mixture = open_mixture(train, TaskSettings(), None, True)
    loader = Loader(mixture, learner, AugmentSettings(flip=0.5, gamma=0.3), batch_size=4, seed=seed)
    parameters = [p for group in learner.groups.values() for p in group]
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.98), weight_decay=0.05)
    means = {f"ema {decay}": WeightAverage(parameters, decay) for decay in decays}
    done = epoch = 0
    while done < steps:
        opened.model.train()
        for step in loader.steps(epoch):
            factor = 0.5 * (1 + math.cos(math.pi * done / steps)) if cosine else 1.0
            for group in optimizer.param_groups:
                group["lr"] = LR * factor * min(1, (done + 1) / 5)
            batch: Any = step.microbatches[0].batch
            learner.losses(opened.model, batch)["total"].backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            for mean in means.values():
                mean.update()
            done += 1
            if done == steps:
                break
        epoch += 1

    def score() -> float:
        found = average(score_samples(learner.segmenter(opened.card, 4), val))["dice"]
        assert isinstance(found, float)
        return found

    result = {"last weights": score()}
    for name, mean in means.items():
        with mean.applied():
            result[name] = score()
    return result


def main() -> None:
    """Measure, print a table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="train and validate on its images")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--decays", type=float, nargs="+", default=[0.9, 0.97, 0.99])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if args.data:
            sets = args.data / "annotations.train.json", args.data / "annotations.val.json"
        else:
            sets = Path(folder) / "train", Path(folder) / "val"
            write_dataset(sets[0], 48, seed=500, size=args.size)
            write_dataset(sets[1], 16, seed=501, size=args.size)
        for cosine in (False, True):
            for seed in range(args.seeds):
                found = measure(sets, args.steps, args.decays, seed, cosine)
                rows.append({"rate": "cosine" if cosine else "constant", "seed": seed, **found})
                print(
                    "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[-1].items()),
                    flush=True,
                )
    names = [name for name in rows[0] if name not in ("rate", "seed")]
    for rate in ("constant", "cosine"):
        means = {name: statistics.mean(row[name] for row in rows if row["rate"] == rate) for name in names}
        print(f"{rate}: " + "  ".join(f"{name} {value:.4f}" for name, value in means.items()))
    if args.json:
        data = args.data.resolve().name if args.data else f"synthetic angiograms of {args.size} pixels"
        write_json(args.json, {"cores": os.cpu_count(), "data": data, "steps": args.steps, "lr": LR, "rows": rows})


if __name__ == "__main__":
    main()
