"""Segmentation quality of `tiny`, a U-Net and Frangi's filter, with the same images and training time.

    .venv/bin/python benchmarks/quality.py [DATA] [--minutes 6] [--seeds 3] [--only arcade] [--work FOLDER]

DATA contains `arcade/` and `chase_db1/`. Four experiments:

arcade           both models start from the same synthetic pre-training, which uses none of these images
arcade_scratch   both models start from random weights
chase            20 retinal images for training and 8 for testing, split by child, from the same pre-training; `tiny`
                 trains and predicts in windows of half its input side
segments         only `tiny`, trained 2.5 times as long and prompted with 25 named segments, 23 of them in the training
                 images; as a control, the same model is prompted with another segment each time

Every training is a `vesalius train` process with the model's recipe. Both models train at the same time, each on half of
the cores, so that other load affects both equally. Thresholds are tuned on `val` if the dataset has it; the filter's
threshold for CHASE_DB1 is tuned on the training images. Finished steps are kept in FOLDER and not repeated. Numbers are
means over seeds. Intervals are cluster bootstraps over groups of each image's mean over seeds; `by_seed` has the values of
each seed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image

from shuffled import Shuffled
from vesalius.data.dataset import Dataset, load_item, open_dataset
from vesalius.data.source import read_json
from vesalius.evaluation.statistics import bootstrap_interval
from vesalius.files import write_json
from vesalius.inference.tiles import TileSettings, find_windows
from vesalius.jobs.opening import load_predictor
from vesalius.lineage import commit, versions
from vesalius.scoring.compare import compare
from vesalius.scoring.evaluate import evaluate
from vesalius.scoring.results import Evaluation, read_evaluation
from vesalius.scoring.tune import find_threshold

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"tiny": ROOT / "recipes" / "arcade.yaml", "unet": ROOT / "recipes" / "unet.yaml"}
SEGMENTS = ROOT / "recipes" / "segments.yaml"
PRETRAINING = {"tiny": ROOT / "recipes" / "tiny.yaml", "unet": ROOT / "recipes" / "unet.yaml"}
RATES = {"tiny": (1e-3, 1e-3), "unet": (2e-3, 1e-3)}
"""Learning rates from random weights, and from pre-trained weights."""
EXPERIMENTS = ("arcade", "arcade_scratch", "chase", "segments")
PHRASE = "blood vessel"
CHILD = re.compile(r"Image_(\d+)[LR]")
WINDOW = 256
"""Side in pixels of the tiles of CHASE_DB1 for `tiny`: half of its segmenter's input."""
COMPARED = ("dice", "cldice")
LONGER = 2.5
"""Factor on the training time of the segments, which have no baseline."""
THREADS = max(1, (os.cpu_count() or 1) // len(RECIPES))
"""Of a training."""


@dataclass(frozen=True)
class Plan:
    """Options of the benchmark. A folder can be continued only with the same options."""

    data: Path
    work: Path
    minutes: float
    pretrain_minutes: float
    synthetic: int
    seeds: int
    limit: int | None

    def facts(self) -> dict[str, Any]:
        """All options that influence the results."""
        return {name: value for name, value in vars(self).items() if name not in ("data", "work")}


def train(plan: Plan, name: str, recipe: Path, minutes: float, seed: int, changes: Sequence[str]) -> Path:
    """Folder of the run of this name, which is trained unless it exists."""
    run, done = plan.work / "runs" / name, plan.work / "runs" / f"{name}.json"
    if done.is_file():
        return run
    if run.exists():  # an interrupted run has an unknown training time
        shutil.rmtree(run)
    command = [sys.executable, "-m", "vesalius", "train", str(recipe), "--set"]
    settings = [f"minutes={minutes}", f"seed={seed}", f"out={run}", *changes]
    print(f"{name}: {minutes} minutes", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    with (plan.work / f"{name}.txt").open("w", encoding="utf-8") as log:
        subprocess.run([*command, *settings], check=True, env=environment, stdout=log, stderr=log)
    last = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    write_json(done, {"minutes": minutes, "steps": json.loads(last)["step"], "settings": settings})
    return run


SYNTHETIC = {"synthetic": 100, "synthetic_val": 101}
"""Name of each synthetic dataset -> seed."""


def synthesize(plan: Plan) -> None:
    """Write the synthetic datasets unless they exist."""
    for (name, seed), n in zip(SYNTHETIC.items(), (plan.synthetic, min(24, plan.synthetic)), strict=True):
        if not (plan.work / name).exists():
            command = [sys.executable, "-m", "vesalius", "synth", str(plan.work / name)]
            subprocess.run([*command, "--n", str(n), "--seed", str(seed)], check=True)


def pretrain(plan: Plan, kind: str) -> Path:
    """The pre-training run of a model on synthetic angiograms."""
    train_set, val_set = (plan.work / name for name in SYNTHETIC)
    changes = [f"data.train={train_set}", f"data.val={val_set}", "data.prompt=null", "validate.every_epochs=1"]
    changes += begin(kind, None)
    return train(plan, f"synthetic-{kind}", PRETRAINING[kind], plan.pretrain_minutes, 0, changes)


def begin(kind: str, trained: Path | None) -> list[str]:
    """Settings to start a run from another run's weights, or from random weights."""
    if trained is None:
        return [f"model={kind}", "init=random", f"optim.lr={RATES[kind][0]}"]
    return [f"model={trained}", "init=pretrained", f"optim.lr={RATES[kind][1]}"]


def train_on(plan: Plan, experiment: str, kind: str, seed: int) -> Path:
    """The run of one model and seed in one experiment."""
    changes = begin(kind, None if experiment == "arcade_scratch" else pretrain(plan, kind))
    changes += data_of(plan, experiment, kind)
    recipe, times = (SEGMENTS, LONGER) if experiment == "segments" else (RECIPES[kind], 1)
    return train(plan, f"{experiment}-{kind}-{seed}", recipe, times * plan.minutes, seed, changes)


def data_of(plan: Plan, experiment: str, kind: str) -> list[str]:
    """Settings for training and validation data."""
    if experiment == "chase":
        return [f"data.train={write_chase(plan, kind)}", "data.val=null", f"data.prompt={PHRASE}"]
    arcade = plan.data / "arcade"
    changes = [f"data.{part}={arcade / f'annotations.{part}.json'}" for part in ("train", "val")]
    limit = plan.limit or (10 if experiment == "segments" else None)
    return changes if limit is None else [*changes, f"validate.limit={limit}"]


def train_side_by_side(plan: Plan, experiments: Sequence[str]) -> None:
    """Train all runs of the experiments, in the same order for both models; both queues share the runs of `segments`."""

    def train_share(kind: str, parity: int) -> None:
        for experiment in experiments:
            for seed in range(plan.seeds):
                if experiment != "segments":
                    train_on(plan, experiment, kind, seed)
                elif seed % 2 == parity:
                    train_on(plan, experiment, "tiny", seed)

    synthesize(plan)
    with ThreadPoolExecutor(len(RECIPES)) as pool:
        kinds = ["tiny"] if set(experiments) == {"segments"} else list(RECIPES)
        list(pool.map(pretrain, [plan] * len(kinds), kinds))
        list(pool.map(train_share, RECIPES, range(2)))


def open_arcade(plan: Plan, split: str, prompt: str | None = PHRASE) -> Dataset:
    """One split of ARCADE."""
    part = open_dataset(plan.data / "arcade", split=split, prompt=prompt)
    return part if plan.limit is None or split == "train" else part.first(plan.limit)


def open_chase(plan: Plan, split: str) -> Dataset:
    """One split of CHASE_DB1; both eyes of a child are one group."""
    whole = open_dataset(plan.data / "chase_db1", prompt=PHRASE, group=CHILD.pattern)
    splits = read_json(plan.data / "chase_db1" / "manifest.json")
    samples = tuple(each for each in whole.samples if splits[each.id]["split_common"] == split)
    part = replace(whole, name=f"chase_db1 {split}", samples=samples)
    return part if plan.limit is None or split == "train" else part.first(plan.limit)


def write_chase(plan: Plan, kind: str) -> Path:
    """The training images as a folder: whole for the U-Net, which crops them itself, and in windows for `tiny`."""
    out = plan.work / f"chase_train_{kind}"
    if out.exists():
        return out
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    for folder in ("images", "masks"):
        (aside / folder).mkdir(parents=True)
    for sample in open_chase(plan, "train").samples:
        item = load_item(sample)
        assert item.masks is not None
        side = WINDOW if kind == "tiny" else max(item.size)
        for index, window in enumerate(find_windows(item.size, side, TileSettings().overlap)):
            region = np.s_[window.top : window.top + window.height, window.left : window.left + window.width]
            name = f"{sample.id}_{index:02d}.png"
            Image.fromarray(item.frames[0][region]).save(aside / "images" / name)
            Image.fromarray(item.masks[0, 0][region].astype(np.uint8) * 255).save(aside / "masks" / name)
    aside.rename(out)
    return out


def score(plan: Plan, name: str, model: str | Path, test: Dataset, val: Dataset | None, tiles: bool = False) -> Path:
    """Evaluate with the threshold tuned on `val`, unless the evaluation folder of this name exists."""
    out = plan.work / "evaluations" / name
    if (out / "metrics.json").is_file():
        return out
    settings: dict[str, Any] = {"tiles": TileSettings(sides=(WINDOW,)) if tiles else None}
    threshold = None
    if val is not None:
        threshold = find_threshold(load_predictor(model, **settings), val).threshold
    segmenter = load_predictor(model, threshold=threshold, **settings)
    print(f"{name}: {len(test.samples)} images, threshold {segmenter.threshold}", flush=True)
    evaluate(segmenter, test, out, figures=False)
    return out


def measure_vessels(plan: Plan, experiment: str) -> dict[str, Any]:
    """Result of one of the three experiments with the phrase `blood vessel`."""
    if experiment == "chase":
        test, val, filter_val = open_chase(plan, "test"), None, open_chase(plan, "train")
    else:
        test, val = open_arcade(plan, "test"), open_arcade(plan, "val")
        filter_val = val
    folders: dict[str, list[Path]] = {kind: [] for kind in RECIPES}
    for seed in range(plan.seeds):
        for kind in RECIPES:
            run = train_on(plan, experiment, kind, seed)
            tiles = experiment == "chase" and kind == "tiny"
            folders[kind].append(score(plan, run.name, run, test, val, tiles))
    data_name = "chase" if experiment == "chase" else "arcade"
    folders["frangi"] = [score(plan, f"{data_name}-frangi", "frangi", test, filter_val)]
    entry = {kind: summarize(plan, found) for kind, found in folders.items()}
    for seed in range(plan.seeds):
        chosen = [folders["unet"][seed], folders["tiny"][seed], folders["frangi"][0]]
        compare(chosen, plan.work / "comparisons" / f"{experiment}-{seed}", only=COMPARED)
    return entry


def summarize(plan: Plan, folders: Sequence[Path]) -> dict[str, Any]:
    """Means over the evaluations of several seeds."""
    found = [read_evaluation(folder, folder.name) for folder in folders]
    by_seed = {name: [each.facts["mean"][name] for each in found] for name in found[0].metrics}
    known = {name: values for name, values in by_seed.items() if None not in values}
    return {
        **{name: mean(values) for name, values in known.items()},
        "ci95": {name: interval_of(found, name) for name in COMPARED},
        "by_seed": {name: known[name] for name in COMPARED},
        "threshold": [each.facts["threshold"] for each in found],
        "failed": sum(each.facts["coverage"]["failed"] for each in found),
        "no_seg": sum(each.facts["coverage"]["no_seg"] for each in found),
        "steps": [steps_of(plan, folder.name) for folder in folders],
        "evaluations": [folder.name for folder in folders],
    }


def steps_of(plan: Plan, name: str) -> int | None:
    """Number of training steps of a run; None for the filter."""
    done = plan.work / "runs" / f"{name}.json"
    return read_json(done)["steps"] if done.is_file() else None


def interval_of(found: Sequence[Evaluation], metric: str) -> list[float] | None:
    """95 % bootstrap interval of the mean over seeds, over groups of images."""
    rows = {key: [each.rows[key][metric] for each in found] for key in found[0].rows}
    kept = [key for key, values in rows.items() if None not in values]
    groups = [found[0].rows[key]["group"] for key in kept]
    interval = bootstrap_interval([mean(rows[key]) for key in kept], groups)
    return None if interval is None else [interval.low, interval.high]


def measure_segments(plan: Plan) -> dict[str, Any]:
    """Mean F1 of an image over 25 named segments, with the right prompts and with shuffled prompts."""
    test = open_arcade(plan, "test", prompt=None)
    phrases = sorted(read_json(plan.data / "arcade" / "segments.json").values())
    rows = []
    for seed in range(plan.seeds):
        run = train_on(plan, "segments", "tiny", seed)
        asked = score(plan, run.name, run, test, None)
        shuffled = plan.work / "evaluations" / f"{run.name}-shuffled"
        if not (shuffled / "metrics.json").is_file():
            evaluate(Shuffled(load_predictor(run), phrases, seed), test, shuffled, figures=False)
        rows.append((f1_by_image(asked), f1_by_image(shuffled)))
    f1, control = (mean(values) for values in zip(*rows, strict=True))
    return {
        "tiny": {
            "f1": f1,
            "f1_shuffled": control,
            "ratio": f1 / control if control else None,
            "by_seed": [{"f1": one, "f1_shuffled": other} for one, other in rows],
            "phrases": len({prompt for sample in test.samples for prompt in sample.prompts}),
            "images": len(test.samples),
            "minutes": LONGER * plan.minutes,
        }
    }


def f1_by_image(folder: Path) -> float:
    """Mean over images of the mean Dice (F1) of their phrases."""
    rows: dict[str, list[float]] = {}
    for (sample, _), row in read_evaluation(folder, folder.name).rows.items():
        if row["dice"] is None:
            raise SystemExit(f"{folder}: {sample} ({row['prompt']}) has no score: {row['error']}")
        rows.setdefault(sample, []).append(row["dice"])
    return mean(mean(values) for values in rows.values())


def keep_metrics(plan: Plan, out: Path) -> None:
    """Copy the metrics of each evaluation and comparison beside the result."""
    for kind, name in (("evaluations", "metrics.json"), ("comparisons", "comparison.json")):
        for found in sorted((plan.work / kind).glob(f"*/{name}")):
            write_json(out / found.parent.name / name, read_json(found))


def print_table(result: dict[str, Any]) -> None:
    """One line per experiment and baseline."""
    for experiment in (name for name in EXPERIMENTS if name in result):
        for baseline, numbers in result[experiment].items():
            shown = {name: numbers.get(name) for name in (*COMPARED, "f1", "f1_shuffled", "ratio")}
            line = "  ".join(f"{name} {value:.4f}" for name, value in shown.items() if value is not None)
            print(f"{experiment:16}{baseline:8}{line}")


def main() -> None:
    """Run the missing steps, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=ROOT / ".." / "shared" / "data", metavar="DATA")
    parser.add_argument(
        "--minutes", type=float, default=6, help="minutes of each training on real images; segments: 2.5 times"
    )
    parser.add_argument(
        "--pretrain-minutes", type=float, default=14, help="minutes of each pre-training on synthetic images"
    )
    parser.add_argument("--synthetic", type=int, default=1200, help="synthetic images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--limit", type=int, help="number of images for validation and test, to try the benchmark")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "quality", metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "quality.json")
    args = parser.parse_args()
    paths = args.data.resolve(), args.work.resolve()
    plan = Plan(*paths, args.minutes, args.pretrain_minutes, args.synthetic, args.seeds, args.limit)
    begun = plan.work / "plan.json"
    asked = {**plan.facts(), "commit": commit()}  # results of one version must not be continued by another
    if begun.is_file() and read_json(begun) != asked:
        raise SystemExit(f"{plan.work}: was begun with {read_json(begun)}; take another --work")
    write_json(begun, asked)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gpu": gpu}
    before = read_json(args.json) if args.json.is_file() else {}
    same = before.get("settings") == plan.facts()
    result: dict[str, Any] = {name: before[name] for name in EXPERIMENTS if same and name in before}
    commits = {name: before["commits"][name] for name in result}
    train_side_by_side(plan, args.only)
    for experiment in args.only:
        result[experiment] = measure_segments(plan) if experiment == "segments" else measure_vessels(plan, experiment)
        commits[experiment] = commit()
        facts = {"machine": machine, "settings": plan.facts(), "commits": commits, "versions": versions()}
        write_json(args.json, {**result, **facts})
        keep_metrics(plan, args.json.with_suffix(""))
    print_table(result)


if __name__ == "__main__":
    main()
