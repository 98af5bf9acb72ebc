"""The definition of a study, its prompts, and the known crowd platforms."""
