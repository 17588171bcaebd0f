"""Metrics against ground truth at image, pixel and object level."""
