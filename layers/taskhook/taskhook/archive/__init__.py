"""Results, copied before the vendor deletes them."""
