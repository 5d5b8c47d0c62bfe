"""Time of an optimizer step of `tiny`, compared with an earlier version of this repository.

    git worktree add ../before COMMIT
    .venv/bin/python benchmarks/training_ratio.py --against ../before [--rounds 5] [--batch-size 4] [--json FILE]

Both versions train with `trainable: full` and fused AdamW from the weights of the shipped `tiny`, on the same synthetic
images of 512 x 512 with the same phrases. Their processes alternate, so that the ratio is valid on a busy machine. Their
losses must agree up to rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from vesalius.files import write_json

STEPS = 6
"""Steps of each process; the first is a warm-up."""

PROGRAM = """
import json, sys, time
import numpy as np, torch
from pathlib import Path
try:
    from vesalius.models.checkpoint import open_model
    from vesalius.models.cpu_allocator import keep_freed_memory
    from vesalius.training.losses import LossSettings, compute_losses
except ImportError:  # names until 03dfe61
    from vesalius.models.allocator import keep_freed_memory
    from vesalius.models.checkpoint import open_bundle as open_model
    from vesalius.training.losses import LossSettings, measure as compute_losses
from vesalius.models.trainable import set_trainable
from vesalius.types import Item

keep_freed_memory()
data = np.load(sys.argv[1])
opened = open_model(Path(sys.argv[2]))
model = opened.model.train()
parameters = [p for group in set_trainable(model, "full").values() for p in group]
optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
items = [Item(str(i), f, ("blood vessel",), m) for i, (f, m) in enumerate(zip(data["frames"], data["masks"]))]
batch = opened.processor(items, answered=True)
losses, took = [], []
for step in range(int(sys.argv[3])):
    started = time.perf_counter()
    loss = compute_losses(model(batch), batch.masks, LossSettings()).total
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    took.append(time.perf_counter() - started)
    losses.append(loss.item())
print(json.dumps({"seconds": took[1:], "losses": losses}))
"""


def measure(tree: Path, data: Path) -> dict[str, Any]:
    """Seconds and loss of each step, with the source code in `tree`."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(data), str(tree / "src/vesalius/models/tiny"), str(STEPS)],
        env={**os.environ, "PYTHONPATH": str(tree / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    """Compare, print one line per round and write the medians."""
    import tempfile

    import numpy as np

    from vesalius.synth import draw

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, metavar="TREE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    trees = {"before": args.against, "now": here}
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        items = [draw(9, i) for i in range(args.batch_size)]
        data = Path(folder) / "data.npz"
        masks = [item.masks[:1] for item in items if item.masks is not None]
        np.savez(data, frames=np.stack([item.frames for item in items]), masks=np.stack(masks))
        for number in range(args.rounds):
            for name, tree in trees.items():
                found = measure(tree, data)
                seconds[name].append(statistics.median(found["seconds"]))
                losses[name] = found["losses"]
            ratio = seconds["before"][-1] / seconds["now"][-1]
            print(
                f"round {number}: {seconds['before'][-1]:.3f} s, {seconds['now'][-1]:.3f} s, {ratio:.2f} x", flush=True
            )
    ratios = [before / now for before, now in zip(seconds["before"], seconds["now"], strict=True)]
    difference = max(abs(a - b) / a for a, b in zip(losses["before"], losses["now"], strict=True))
    print(f"{statistics.median(ratios):.2f} x; losses differ by {difference:.1e} at most")
    if args.json:
        write_json(
            args.json,
            {
                "cores": os.cpu_count(),
                "batch_size": args.batch_size,
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "seconds": seconds,
                "losses": losses,
                "largest_relative_difference": difference,
            },
        )


if __name__ == "__main__":
    main()
