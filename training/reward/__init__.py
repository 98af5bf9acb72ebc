"""From votes of a study to a reward: read comparisons, fit a head, measure it, write a card."""
