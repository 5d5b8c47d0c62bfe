"""Facts about the runs of several folds, which open as one ensemble, for `vesalius info`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vesalius.models.reference import ModelRef

FEW = ("name", "step", "threshold", "fingerprint")
"""Facts of each fold; `vesalius info FOLDER/fold1` shows all."""


def describe_ensemble(ref: ModelRef, describe: Callable[[ModelRef], dict[str, Any]]) -> dict[str, Any]:
    """Facts about an ensemble; `describe` gives those of one model."""
    members = [describe(each) for each in ref.members]
    return {
        "folder": str(ref.path),
        "layout": "folds",
        "parameters": {"total": sum(each["parameters"]["total"] for each in members)},
        "members": {ref.members[i].name: {key: each[key] for key in FEW} for i, each in enumerate(members)},
        "warnings": [warning for each in members for warning in each["warnings"]],
    }


def summarize_ensemble(facts: dict[str, Any]) -> list[str]:
    """The facts as text lines for the terminal."""
    members = facts["members"]
    return [
        f"ensemble of {len(members)} models, {facts['parameters']['total']:,} parameters; their probabilities are averaged",
        f"folder: {facts['folder']} ({facts['layout']})",
        *(
            f"{name}: {each['name']}, step {each['step']}, threshold {each['threshold']}, fingerprint {each['fingerprint']}"
            for name, each in members.items()
        ),
        *(f"WARNING: {warning}" for warning in facts["warnings"]),
    ]
