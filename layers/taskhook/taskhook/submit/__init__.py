"""From a request to a paid task."""
