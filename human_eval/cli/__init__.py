"""The command line, `python -m human_eval`: one module for each group of commands."""
