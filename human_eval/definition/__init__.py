"""What a study compares and asks, its prompts, and the crowd platforms it knows."""
