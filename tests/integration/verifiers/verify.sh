#!/usr/bin/env bash
# OpenSSL and a shell. Exit code 0: verified, 1: refused, anything else: broken.
set -euo pipefail
trap 'exit 2' ERR
age=$(($(date +%s) - TIMESTAMP))
((age >= -300 && age <= 300)) || exit 1
key=$(base64 -d <<<"${SECRET#whsec_}" | od -An -v -tx1 | tr -d ' \n')
expected=v1,$({ printf '%s.%s.' "$ID" "$TIMESTAMP"; cat; } | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64)
for signature in $SIGNATURE; do
  if [ "$signature" = "$expected" ]; then exit 0; fi
done
exit 1
