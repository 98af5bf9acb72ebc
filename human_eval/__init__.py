"""A pairwise human study of video models: pairs of clips go in, votes and win rates come out."""
