"""AWS's list prices, in one place: us-east-1, arm64, on demand, no free tiers, dollars, 2026-11-25."""

MILLION = 1_000_000
MONTH_S = 30 * 24 * 3600
# What a vendor takes, which is billed as time of the functions that wait for it.
VENDOR_SUBMIT_S, VENDOR_POLL_S = 0.4, 0.2

HTTP_API_REQUEST = 1.00 / MILLION
LAMBDA_REQUEST = 0.20 / MILLION
LAMBDA_GB_SECOND = 0.0000133334
WRITE_UNIT = 0.625 / MILLION
READ_UNIT = 0.125 / MILLION
TABLE_GB_MONTH = 0.25
PITR_GB_MONTH = 0.20
LOG_GB = 0.50
LOG_GB_MONTH = 0.03
METRIC_MONTH = 0.30
SECRET_MONTH = 0.40
SCHEDULE = 1.00 / MILLION
S3_PUT = 5.00 / MILLION
S3_GB_MONTH = 0.023
TRANSFER_OUT_GB = 0.09  # to the internet; in, and to AWS's services in the region, is free
# What TLS 1.3 adds, in bytes. Of a connection: what a client of OpenSSL 3 sends (ClientHello 517, Finished
# 80, close_notify 24). Of a message: two records, for its head and its body.
CONNECTION_BYTES, MESSAGE_BYTES = 621, 2 * 22
DURABLE_OPERATION = 8.00 / MILLION
DURABLE_GB_WRITTEN = 0.25
DURABLE_GB_MONTH = 0.15
TRANSITION = 25.00 / MILLION
SQS_REQUEST = 0.40 / MILLION
GB = 2**30  # as AWS reckons in its examples (S3's FAQ, of byte-hours and of transfer)
