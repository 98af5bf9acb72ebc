"""The shapes world: scenes, drawn clips and captions."""
