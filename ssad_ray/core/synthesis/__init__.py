"""Planted defects: pure functions (image, generator) -> (image, mask), one file per family; and CutPaste's edits."""
