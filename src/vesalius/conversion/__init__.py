"""Conversion of models between the official Sa2VA layout and bundles, with a proof of equality."""
