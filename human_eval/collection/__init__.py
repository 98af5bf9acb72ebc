"""Collecting votes: pairs, assignments, submissions."""
