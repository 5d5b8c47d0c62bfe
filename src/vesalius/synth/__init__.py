"""Synthetic pictures with exact masks: coronary angiograms, still or as clips, and retinas."""

from vesalius.synth.series import PROMPTS, draw, draw_clip, write_dataset

__all__ = ["PROMPTS", "draw", "draw_clip", "write_dataset"]
