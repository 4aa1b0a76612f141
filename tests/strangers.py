"""What strangers put into the headers of a callback."""

ODD = [
    "",
    " ",
    "v1",
    "v1,",
    "v1,ü",
    "\xff\xfe",
    "١٧٦٤١٠٠٠٠٠",
    "²",
    "-1",
    "1e9",
    "nan",
    "9" * 5000,
    "\ud800",
    "a b\tc",
    "x" * 100_000,
    "\0",
    "%s{}",
]
