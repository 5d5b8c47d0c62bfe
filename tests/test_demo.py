"""Tests of the verdict at the end of `make demo`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).resolve().parents[1] / "recipes" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> Any:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_phrase_decides_if_it_leads_on_the_masks_of_each_phrase(demo: Any) -> None:
    own, swapped = {"blood vessel": 0.75, "catheter": 0.36}, {"blood vessel": 0.08, "catheter": 0.16}
    said = demo.verdict(own, swapped)
    assert said.startswith("The phrase decides what is segmented:")
    assert "blood vessel 0.750 against 0.080, catheter 0.360 against 0.160" in said


@pytest.mark.parametrize(
    ("catheter", "vessel", "weak"),
    [
        ((0.06, 0.16), (0.65, 0.05), "catheter"),  # asking for a vessel scores higher on the catheter
        ((0.25, 0.16), (0.65, 0.05), "catheter"),  # a lead below the minimum
        ((0.30, 0.10), (0.65, 0.64), "blood vessel"),
        ((0.20, 0.20), (0.65, 0.65), "blood vessel and catheter"),  # one mask for both phrases
    ],
)
def test_the_phrase_decides_nothing_without_a_lead_on_each(
    demo: Any, catheter: tuple[float, float], vessel: tuple[float, float], weak: str
) -> None:
    own, swapped = ({"blood vessel": v, "catheter": c} for v, c in zip(vessel, catheter, strict=True))
    assert demo.verdict(own, swapped).startswith(f"The phrase decides nothing for {weak}: ")
