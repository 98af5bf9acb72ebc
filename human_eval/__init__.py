"""The human study: pairs of clips in, votes, and what they say about the systems out."""
