// Verify a callback, keep it once, answer; the work comes after. SECRET=whsec_… go run receive.go :8000
package main

import ("crypto/hmac"; "crypto/sha256"; "encoding/base64"; "fmt"; "io"; "log"; "net/http"; "os"; "slices"; "strconv"; "strings"; "sync"; "time")

func main() {
	key, _ := base64.StdEncoding.DecodeString(os.Getenv("SECRET")[len("whsec_"):])
	var inbox sync.Map // yours: a table whose key is the id; a worker goes through it
	take := func(w http.ResponseWriter, r *http.Request) {
		id, sentAt := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
		body, broken := io.ReadAll(http.MaxBytesReader(w, r.Body, 1e6)) // a callback has less than 1 MB
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", id, sentAt, body)
		good := []byte("v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
		isGood := func(signature string) bool { return hmac.Equal(good, []byte(signature)) }
		seconds, _ := strconv.ParseInt(sentAt, 10, 64)
		fresh := time.Since(time.Unix(seconds, 0)).Abs() < 5*time.Minute
		if r.Method != "POST" || broken != nil || !fresh || !slices.ContainsFunc(strings.Fields(r.Header.Get("webhook-signature")), isGood) {
			w.WriteHeader(401)
		} else if _, repeated := inbox.LoadOrStore(id, body); !repeated {
			fmt.Println(string(body))
		}
	}
	server := http.Server{Addr: os.Args[1], Handler: http.HandlerFunc(take), ReadTimeout: 20 * time.Second}
	log.Fatal(server.ListenAndServe())
}
