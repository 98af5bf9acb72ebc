"""The face: layout and handlers only. Models come in as callables and plain data."""
