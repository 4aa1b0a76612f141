"""The rest of AWS."""
