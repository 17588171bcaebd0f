"""Readers of data set layouts, one file per layout, and the manifest that every verb reads."""
