#!/usr/bin/env bash
# Verify a callback, keep it once, answer; the work comes after. A CGI program, with SECRET=whsec_… and INBOX=/a/folder set.
# OpenSSL takes the key as an argument, which other users of the machine may read.
set -euo pipefail

answer() { printf 'Status: %s\r\n\r\n' "$1"; exit; }
id=${HTTP_WEBHOOK_ID:-} sent_at=${HTTP_WEBHOOK_TIMESTAMP:-} sent=${HTTP_WEBHOOK_SIGNATURE:-}
[[ ${REQUEST_METHOD:-} == POST && ${CONTENT_LENGTH:-} =~ ^[0-9]{1,6}$ ]] || answer 400 # a callback has less than 1 MB
body=$(mktemp "$INBOX/.XXXXXX")
trap 'rm -f "$body"' EXIT
head -c "$CONTENT_LENGTH" > "$body"

[[ $sent_at =~ ^[1-9][0-9]{0,11}$ ]] || answer 401 # nothing else may reach the arithmetic
age=$(($(date +%s) - sent_at))
((age > -300 && age < 300)) || answer 401
key=$(base64 -d <<< "${SECRET#whsec_}" | od -An -v -tx1 | tr -d ' \n')
good=$({ printf '%s.%s.' "$id" "$sent_at"; cat "$body"; } | openssl dgst -sha256 -mac HMAC -macopt "hexkey:$key" -binary | base64)
[[ " $sent " == *" v1,$good "* ]] || answer 401
[[ -e $INBOX/$id ]] || ln "$body" "$INBOX/$id" # fails, and is sent again, where two come at once
answer 204
