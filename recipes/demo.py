"""`make demo`: synthesize, check, train and evaluate on synthetic angiograms, from random weights, on this machine.

Controls on the same test images: the untrained model, the shipped `tiny`, and scores against the mask of another phrase.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from vesalius import load_item, load_predictor, load_samples
from vesalius.evaluation.overlap import score
from vesalius.models.checkpoint import new_model, save_bundle

RECIPE = Path(__file__).with_name("demo.yaml")
SETS = {"train": (160, 1), "val": (12, 2), "test": (24, 3)}
"""Name -> number of images and seed."""

MARKER = ".made-by-demo"
"""Marker file of a folder written by an earlier demo, which may be replaced."""


def vesalius(*arguments: str | Path) -> None:
    """Print and run one `vesalius` command."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ vesalius {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "vesalius", *words], check=True)


def mean_dice(evaluation: Path, prompt: str) -> float:
    """Mean Dice of one phrase in an evaluation folder."""
    lines = (evaluation / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return float(np.mean([row["dice"] for row in map(json.loads, lines) if row["prompt"] == prompt]))


def wrong_phrase_dice(model: Path, data: Path) -> float:
    """Mean Dice between the prediction for "blood vessel" and the catheter mask; high if the model ignores the phrase."""
    predictor = load_predictor(model)
    dice = []
    for sample in load_samples(data):
        item = load_item(sample)
        assert item.masks is not None
        catheter = item.masks[item.prompts.index("catheter"), 0]
        dice.append(score(catheter, predictor(item.frames[0], "blood vessel").mask)["dice"] or 0.0)
    return float(np.mean(dice))


def main() -> None:
    """Run the demo in the folder `--out` and print the table of Dice scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="change settings of recipes/demo.yaml")
    args = parser.parse_args()
    out: Path = args.out
    started = time.perf_counter()
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        sys.exit(f"{out}: is not empty and was not written by an earlier demo; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARKER).touch()
    for name, (n, seed) in SETS.items():
        vesalius("synth", out / name, "--n", str(n), "--seed", str(seed))
        vesalius("check", out / name)
    data = [f"data.train={out / 'train'}", f"data.val={out / 'val'}", f"out={out / 'run'}"]
    vesalius("train", RECIPE, "--set", *args.set, *data)
    untrained = new_model("tiny", seed=0)
    save_bundle(out / "untrained", untrained)
    untrained_out = out / "evaluation-untrained"
    vesalius("evaluate", out / "untrained", out / "test", "--answer", "force", "--out", untrained_out)
    vesalius("evaluate", "tiny", out / "test", "--out", out / "evaluation-tiny")
    vesalius("evaluate", out / "run", out / "test", "--out", out / "evaluation")
    wrong = wrong_phrase_dice(out / "run", out / "test")
    print(f"\nDice on {SETS['test'][0]} synthetic angiograms that were not used for training")
    print(f"{'':44}{'blood vessel':>14}{'catheter':>12}")
    for label, folder in (
        ("trained here", "evaluation"),
        ("untrained (forced answer)", "evaluation-untrained"),
        ("shipped tiny", "evaluation-tiny"),
    ):
        vessel, catheter = (mean_dice(out / folder, prompt) for prompt in ("blood vessel", "catheter"))
        print(f"{label:44}{vessel:14.3f}{catheter:12.3f}")
    print(f"{'blood vessel scored against catheter masks':44}{wrong:14.3f}")
    print(f"\nreport: {out / 'evaluation' / 'report.html'}")
    print(f"took {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
