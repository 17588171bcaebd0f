"""Planted defects: pure functions (image, generator) -> (image, exact mask), one file per family."""
