"""Components of a model by tensor name, for parameter counts, training and device placement."""

from __future__ import annotations

from vesalius.models.families.table import FAMILIES

PARTS = {
    "vision encoder": tuple(
        dict.fromkeys(f"vlm.{path}." for family in FAMILIES.values() for path in family.vision_modules)
    ),
    "language model": ("vlm.model.language_model.",),
    "language head": ("vlm.lm_head.",),
    "projector": ("projector.",),
    "SAM encoder": ("sam.vision_encoder.", "sam.no_memory_embedding"),
    "SAM decoder": ("sam.mask_decoder.",),
    "SAM prompts and memory": ("sam.",),
}
"""Component -> prefixes of its tensor names; the first component with a matching prefix applies."""

TRAINABLE_PARTS = {
    "projector": ("projector",),
    "decoder": ("projector", "SAM decoder"),
    "full": tuple(part for part in PARTS if part != "SAM prompts and memory"),
}
"""Preset of the setting `trainable` -> components with trained weights."""


def part_of(name: str) -> str:
    """The component of a `TextSegModel` that a tensor belongs to; KeyError for an unknown tensor name."""
    for part, starts in PARTS.items():
        if name.startswith(starts):
            return part
    raise KeyError(name)
