"""Synthetic images with exact masks: coronary angiograms (stills or clips) and fundus photographs."""

from vesalius.synth.series import PROMPTS, draw, draw_clip, write_dataset

__all__ = ["PROMPTS", "draw", "draw_clip", "write_dataset"]
