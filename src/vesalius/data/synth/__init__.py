"""Synthetic pictures with exact masks: coronary angiograms, still or as clips, and retinas."""

from vesalius.data.synth.series import PROMPTS, draw, draw_clip, write_data_set

__all__ = ["PROMPTS", "draw", "draw_clip", "write_data_set"]
