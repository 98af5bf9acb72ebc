"""The web applications of a study: votes, results, administration."""
