// Returns how Go's net/http interprets a request, as JSON. Run as: main PORT.
package main

import (
	"encoding/json"
	"net/http"
	"os"
)

func answer(handler string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{
			"handler": handler,
			"method":  r.Method,
			"path":    r.URL.Path,
			"host":    r.Host,
			"subject": r.Header.Get("X-Auth-Subject"),
			"tenant":  r.Header.Get("X-Auth-Tenant"),
			"roles":   r.Header.Get("X-Auth-Roles"),
		})
	}
}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/admin", answer("admin"))
	mux.HandleFunc("/admin/", answer("admin"))
	mux.HandleFunc("/", answer("other"))
	if err := http.ListenAndServe("127.0.0.1:"+os.Args[1], mux); err != nil {
		panic(err)
	}
}
