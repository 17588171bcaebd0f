"""Floor 2: one file per verb, on Ray."""
