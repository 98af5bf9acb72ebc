"""The shapes world: rendered clips and their captions."""
