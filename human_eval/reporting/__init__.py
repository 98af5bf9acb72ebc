"""Charts, reports and exports made from votes."""
