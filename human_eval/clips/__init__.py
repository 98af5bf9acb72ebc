"""Video files on their way into a study: found, checked, re-encoded and renamed."""
