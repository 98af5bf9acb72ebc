"""Amazon Mechanical Turk batches. Legacy."""
