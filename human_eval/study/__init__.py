"""One study as a whole: open, back up, erase, simulate."""
