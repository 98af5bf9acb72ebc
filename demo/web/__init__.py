"""The web application around the page."""
