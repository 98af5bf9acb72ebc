"""The registry of models, and getting their weights onto this machine."""
