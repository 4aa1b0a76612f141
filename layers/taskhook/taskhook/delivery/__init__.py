"""Callbacks: attempts, hosts, samples."""
