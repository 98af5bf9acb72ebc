"""Loads models, and runs one computation at a time."""
