"""The parts of a model, by the names of their tensors: what is counted, trained and placed apart."""

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
"""Name of a part -> how the names of its tensors begin; the first that fits counts."""

TRAINABLE_PARTS = {
    "projector": ("projector",),
    "decoder": ("projector", "SAM decoder"),
    "full": tuple(part for part in PARTS if part != "SAM prompts and memory"),
}
"""The setting `trainable` -> the parts that it names."""


def part_of(name: str) -> str:
    """The part that a tensor of a `TextSegModel` belongs to; KeyError for a name that such a model does not have."""
    for part, starts in PARTS.items():
        if name.startswith(starts):
            return part
    raise KeyError(name)
