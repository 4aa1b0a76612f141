"""One file for each vendor: its requests, and what its answers mean."""
