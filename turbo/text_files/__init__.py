"""Text files that people write: tables and lists of prompts, read in one way by all packages."""
