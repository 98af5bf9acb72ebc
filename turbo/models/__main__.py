"""python -m turbo.models: list, show, fetch, convert, export and verify models."""

from turbo.models.cli import main

main()
