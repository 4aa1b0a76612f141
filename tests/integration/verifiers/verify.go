// Go's standard library alone. Exit code 0: verified, 1: refused, anything else: broken.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(os.Getenv("SECRET"), "whsec_"))
	if err != nil {
		os.Exit(3)
	}
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		os.Exit(4)
	}
	seconds, err := strconv.ParseInt(os.Getenv("TIMESTAMP"), 10, 64)
	if err != nil || time.Since(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		os.Exit(1)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(os.Getenv("ID") + "." + os.Getenv("TIMESTAMP") + "."))
	mac.Write(body)
	for _, signature := range strings.Split(os.Getenv("SIGNATURE"), " ") {
		version, value, _ := strings.Cut(signature, ",")
		claimed, err := base64.StdEncoding.DecodeString(value)
		if err == nil && version == "v1" && hmac.Equal(claimed, mac.Sum(nil)) {
			return
		}
	}
	os.Exit(1)
}
