"""python -m turbo.models: list, fetch, convert and verify models."""

from turbo.models.cli import main

main()
