"""Training of the shapes models."""
