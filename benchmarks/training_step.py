"""Time and memory of a training step of the tiny model.

    .venv/bin/python benchmarks/training_step.py [--steps 8] [--batch-size 4] [--json FILE]

Prints steps/s, images/s and peak memory for each preset of `trainable`, each in its own process, with and without
`keep_freed_memory`. The images are synthetic, 512 x 512 with two phrases; the first two steps do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP = 2


def measure_one(what: Any, steps: int, batch_size: int, keep: bool) -> dict[str, Any]:
    """Measurements of one preset, in this process."""
    import torch

    from vesalius.models.checkpoint import new_model
    from vesalius.models.cpu_allocator import keep_freed_memory
    from vesalius.models.trainable import set_trainable
    from vesalius.synth import draw
    from vesalius.training.losses import LossSettings, compute_losses

    if keep:
        keep_freed_memory()
    opened = new_model("tiny", seed=0)
    groups = set_trainable(opened.model, what)
    optimizer = torch.optim.AdamW([p for group in groups.values() for p in group], lr=1e-4)
    batch = opened.processor([draw(0, i) for i in range(batch_size)], answered=True)
    seconds = []
    for _ in range(steps + WARM_UP):
        started = time.perf_counter()
        losses = compute_losses(opened.model(batch), batch.masks, LossSettings())
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[WARM_UP:])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "trainable": what,
        "keep_freed_memory": keep,
        "steps_per_s": 1 / median,
        "images_per_s": batch_size / median,
        "peak_mib": usage.ru_maxrss / 1024,
        "page_faults": usage.ru_minflt,
    }


def main() -> None:
    """Measure all presets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "KEEP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_one(args.one[0], args.steps, args.batch_size, args.one[1] == "keep")))
        return
    rows = []
    print(f"{'trainable':14}{'freed memory':>14}{'steps/s':>10}{'images/s':>10}{'peak MiB':>10}{'page faults':>13}")
    for what in ("projector", "decoder", "full"):
        for keep in ("return", "keep"):
            command = [sys.executable, __file__, "--steps", str(args.steps), "--batch-size", str(args.batch_size)]
            done = subprocess.run([*command, "--one", what, keep], check=True, capture_output=True, text=True)
            row = json.loads(done.stdout)
            rows.append(row)
            print(
                f"{what:14}{keep:>14}{row['steps_per_s']:10.2f}{row['images_per_s']:10.2f}"
                f"{row['peak_mib']:10.0f}{row['page_faults']:13d}",
                flush=True,
            )
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        args.json.write_text(
            json.dumps({"machine": machine, "batch_size": args.batch_size, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
