"""Rows, metrics and folders of invented evaluations, for tests of reports and comparisons."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests.html_pages import ATTACK

from vesalius.evaluation.metrics import METRICS
from vesalius.evaluation.statistics import summarize
from vesalius.scoring.compare import compare
from vesalius.scoring.report import write_report

NAMES = [name for name in METRICS if not name.endswith("mm")]


def row(index: int, dice: float | None, status: str = "ok", **changes: Any) -> dict[str, Any]:
    base = {"id": f"image_{index:03}", "group": f"p{index % 4}", "prompt": "blood vessel", "status": status}
    pixels = dict.fromkeys(("target_pixels", "prediction_pixels", "intersection"), None if dice is None else 100)
    error = "cannot be read" if status == "failed" else None
    told = {"says_seg": status == "ok", "figure": None, **dict.fromkeys(METRICS, dice), **pixels}
    return {**base, **told, "text": "", "error": error, **changes}


def calibration(peak: float = 0.3) -> dict[str, Any]:
    """Curves that are highest at `peak`; precision is undefined at the last threshold."""
    tried = [k / 100 for k in range(1, 100)]
    curve = [0.6 - abs(threshold - peak) / 2 for threshold in tried]
    edges = [k / 10 for k in range(11)]
    bins = [
        {"low": low, "high": high, "pixels": 10**k, "mean_probability": low + 0.05, "positive_fraction": low}
        for k, (low, high) in enumerate(pairwise(edges))
    ]
    bins[3] |= {"pixels": 0, "mean_probability": None, "positive_fraction": None}
    return {
        "average_precision": 0.471,
        "brier": 0.0275,
        "ece": 0.0229,
        "reliability": bins,
        "thresholds": tried,
        "curves": {"dice": curve, "iou": curve, "precision": [*curve[:-1], None], "recall": curve},
    }


def metrics(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    prompts = dict.fromkeys(each["prompt"] for each in rows)
    groups: dict[str, list[float | None]] = {}
    for each in rows:
        groups.setdefault(each["group"], []).append(each["dice"])
    known = {group: [value for value in values if value is not None] for group, values in groups.items()}
    return {
        "model": {"name": "tiny", "kind": "textseg", "fingerprint": "a1b2c3", "step": 400},
        "data": {
            "name": "arcade/test",
            "format": "vesalius",
            "fingerprint": "d4e5",
            "n_samples": len(rows),
            "n_groups": len(groups),
            "n_training_samples": 0,
            "near_training_samples": ["twin_007"],
        },
        "threshold": 0.35,
        "threshold_origin": {"how": "tuned", "metric": "dice"},
        **summarize(rows, NAMES),
        "seg_rate": 0.875,
        "unknown_phrases": {},
        "empty": {"both_empty": 31, "false_alarm": 32, "total_miss": 33, "both": 34},
        "referring": {"giou": 0.421, "ciou": 0.432},
        "prompts": {each: summarize([one for one in rows if one["prompt"] == each], NAMES) for each in prompts},
        "groups": [
            {"group": group, "predictions": len(values), "failed": len(values) - len(known[group])}
            | {"dice": float(np.mean(known[group])) if known[group] else None}
            for group, values in groups.items()
        ],
        "calibration": calibration(),
        "took_s": 12.34,
        "images_per_s": 3.456,
        "notes": ["each image is its own group"],
        "settings": {"limit": None, "figures": True, "batch": 4},
        "versions": {"python": "3.11.7"},
        **changes,
    }


def with_figures(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (folder / "figures").mkdir()
    for each in rows:
        each["figure"] = f"figures/{each['id']}.png"
        Image.new("RGB", (1200, 40), "navy").save(folder / each["figure"])
    return rows


def awkward_report(folder: Path) -> Path:
    """The page of an evaluation with long ids, three prompts, failures, many groups, figures and HTML in its texts."""
    rows = [row(index, index / 40, prompt=("血管", ATTACK, "x" * 200)[index % 3]) for index in range(40)]
    rows[7]["id"] = "patient_with_a_name_that_never_ends_" * 4
    rows = with_figures(folder, rows)
    rows.append(row(41, None, "failed", id="<b>bold</b>", error=ATTACK + "/a/very/long/path" * 20))
    return write_report(folder, metrics(rows, notes=[ATTACK]), rows)


def scored_row(name: str, dice: float | None, **changes: Any) -> dict[str, Any]:
    base = {"id": name, "group": name[0], "prompt": "vessel", "status": "ok", "figure": None, "dice": dice}
    return {**base, "text": "", "error": None, **changes}


def rows_of(*dice: float | None, **changes: Any) -> list[dict[str, Any]]:
    """Two images of each patient: a1, a2, b1, b2, ..."""
    return [scored_row(f"{'abcdefgh'[i // 2]}{i % 2 + 1}", value, **changes) for i, value in enumerate(dice)]


def write_evaluation(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """An evaluation folder; `changes` go into metrics.json, those of `data` and `settings` into these."""
    metrics = [name for name, value in rows[0].items() if name not in scored_row("x", None) or name == "dice"]
    data = {"name": "squares", "format": "maskfolder", "fingerprint": "d4e5", "n_samples": len(rows)}
    facts = {
        "model": {"name": folder.name, "kind": "fake", "fingerprint": folder.name, "step": 7},
        "data": data | {"n_groups": len({each["group"] for each in rows})} | changes.pop("data", {}),
        "threshold": 0.5,
        **summarize(rows, metrics),
        "settings": {"answer": "generate", "batch_size": 4} | changes.pop("settings", {}),
        **changes,
    }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(facts), encoding="utf-8")
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in rows]
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


OLD = (0.5, 0.7, 0.6, 0.8, 0.4, 0.6)
NEW = (0.6, 0.8, 0.9, 0.9, 0.3, 0.5)


Rows = list[dict[str, Any]]


def pair(folder: Path, old: Rows | None = None, new: Rows | None = None, **changes: Any) -> list[Path]:
    """The evaluation folders `old` and `new`; `changes` go into metrics.json of `new`."""
    return [
        write_evaluation(folder / "old", rows_of(*OLD) if old is None else old),
        write_evaluation(folder / "new", rows_of(*NEW) if new is None else new, **changes),
    ]


def awkward_comparison(folder: Path) -> Path:
    """The page of a comparison with HTML in prompts and names."""
    folders = [
        write_evaluation(folder / f"{name}<b>", rows_of(*dice, prompt=ATTACK) + rows_of(*dice, prompt="x" * 200))
        for name, dice in (("old", OLD), ("新", NEW))
    ]
    compare(folders, folder / "out")
    return folder / "out" / "report.html"
