"""Video files of a study: find, check, re-encode and rename them."""
