"""How fast does a model predict, and with how much memory?

    .venv/bin/python benchmarks/predict.py [--model tiny] [--images 16] [--json FILE]

Prints images/s and peak memory for one and two phrases an image, generated and forced answers, and two batch
sizes, each in a process of its own. Images are synthetic, 512 x 512; reading, masks at full size included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPTS = ("blood vessel", "catheter")


def measure_one(model: str, images: int, prompts: int, answer: str, batch: int) -> dict[str, Any]:
    """The numbers of one setting, in this process."""
    from vesalius.data.synth import draw
    from vesalius.inference.predictor import load_predictor
    from vesalius.models.allocator import keep_freed_memory
    from vesalius.types import Item

    keep_freed_memory()
    predictor = load_predictor(model, answer="force" if answer == "force" else "generate", batch=batch)
    items = [Item(str(i), draw(9, i).frames, PROMPTS[:prompts]) for i in range(images)]
    predictor.predict(items[:batch])
    started = time.perf_counter()
    predictions = predictor.predict(items)
    covered = [
        prediction.mask.mean() for prediction in predictions
    ]  # the masks at full size are part of the job
    took_s = time.perf_counter() - started
    return {
        "prompts": prompts,
        "answer": answer,
        "batch": batch,
        "images_per_s": images / took_s,
        "ms_per_image": 1000 * took_s / images,
        "no_seg": sum(prediction.status == "no_seg" for prediction in predictions),
        "mean_covered": float(sum(covered) / len(covered)),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Run all settings and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("PROMPTS", "ANSWER", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        prompts, answer, batch = args.one
        print(json.dumps(measure_one(args.model, args.images, int(prompts), answer, int(batch))))
        return
    rows = []
    print(
        f"{'phrases':>8}{'answer':>10}{'batch':>7}{'images/s':>10}{'ms/image':>10}{'no [SEG]':>10}{'peak MiB':>10}"
    )
    for prompts in (1, 2):
        for answer in ("generate", "force"):
            for batch in (1, 4):
                command = [sys.executable, __file__, "--model", args.model, "--images", str(args.images)]
                one = ["--one", str(prompts), answer, str(batch)]
                done = subprocess.run([*command, *one], check=True, capture_output=True, text=True)
                row = json.loads(done.stdout)
                rows.append(row)
                print(
                    f"{prompts:8d}{answer:>10}{batch:7d}{row['images_per_s']:10.2f}{row['ms_per_image']:10.0f}"
                    f"{row['no_seg']:10d}{row['peak_mib']:10.0f}",
                    flush=True,
                )
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        args.json.write_text(
            json.dumps({"machine": machine, "model": args.model, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
