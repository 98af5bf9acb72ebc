"""Components that the tabs share."""
