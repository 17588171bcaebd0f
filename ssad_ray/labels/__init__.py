"""Label versions: what was found where, by which model, written once and never changed."""
