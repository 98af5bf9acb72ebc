"""Statistics of votes. Pure functions of a votes frame; no database."""
