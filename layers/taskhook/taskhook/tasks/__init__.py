"""What a caller sees of its tasks, and does with them."""
