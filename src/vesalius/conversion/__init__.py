"""From one layout of a model to the other, with proof."""
