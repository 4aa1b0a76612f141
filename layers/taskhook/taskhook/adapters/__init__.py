"""One adapter a file: vendor error in, port error out."""
