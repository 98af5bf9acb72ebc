"""Evaluation of the shapes models."""
