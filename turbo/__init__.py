"""T2V-Turbo: text to video in four steps, and the distillation that makes this possible."""

__version__ = "0.1.0"
