"""Prompts with the same mask are found and counted."""

from __future__ import annotations

import numpy as np
import pytest

from vesalius.evaluation.overlap import confusion, dice
from vesalius.evaluation.same_masks import SAME, PackedMask, SameMasks, describe_same, find_same


@pytest.mark.parametrize("moved", [0, 1, 2, 3, 20])
def test_masks_are_the_same_above_the_dice(moved: int) -> None:
    mask = np.zeros((37, 53), bool)
    mask[5:20, 5:35] = True
    other = np.roll(mask, moved, axis=1)
    counted = dice(confusion(mask, other))
    assert counted is not None
    assert PackedMask.of(mask).is_same(PackedMask.of(other)) == (counted > SAME)


def test_empty_masks_and_masks_of_other_areas_are_not_the_same() -> None:
    empty, full, half = np.zeros((8, 8), bool), np.ones((8, 8), bool), np.ones((8, 8), bool)
    half[:4] = False
    for one, other in ((empty, empty), (empty, full), (full, half), (full, np.ones((8, 32), bool))):
        assert not PackedMask.of(one).is_same(PackedMask.of(other))


def test_counts_are_of_images_with_both_predictions() -> None:
    found = SameMasks()
    found.add([row("a"), row("b", same=["a"]), row("c", same=["a", "b"])])
    found.add([row("a"), row("b"), row("c", status="failed")])
    assert found.as_json()[0] == {"prompts": ["a", "b"], "same": 1, "images": 2}
    assert [each["images"] for each in found.as_json()] == [2, 1, 1]
    said = describe_same([*found.as_json(), {"prompts": ["c", "d"], "same": 9, "images": 9}])
    assert '"a" and "b" on 1 of 2 images' in said
    assert "and 1 more" in said
    assert describe_same([]) == ""


def test_only_earlier_prompts_are_listed() -> None:
    mask = PackedMask.of(np.eye(9, dtype=bool))
    assert find_same(mask, {"a": mask, "b": PackedMask.of(np.ones((9, 9), bool))}) == ["a"]


def row(prompt: str, status: str = "ok", same: list[str] | None = None) -> dict[str, object]:
    return {"prompt": prompt, "status": status, **({"same_mask_as": same} if same else {})}
