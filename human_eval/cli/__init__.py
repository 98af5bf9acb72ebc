"""The commands of `python -m human_eval`."""
