"""Charts, reports, exports and live results, computed from votes."""
