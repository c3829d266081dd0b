// What one would write by hand in place of an aggregation: three calls at once, their JSON in one object, unparsed. It
// does what the rule of the bench does and no more: a deadline for all, a bound for each body, a check that it is JSON.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"time"
)

const mostOfABody = 1 << 20

var names = [...]string{"user", "orders", "offers"}

type heard struct {
	place int
	body  json.RawMessage
	err   error
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	backend := flag.String("backend", "", "URL that each call asks")
	flag.Parse()
	transport := &http.Transport{
		MaxIdleConns:        4096,
		MaxIdleConnsPerHost: 4096,
		IdleConnTimeout:     55 * time.Second,
		DisableCompression:  true,
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
	}
	client := &http.Client{Transport: transport}
	server := &http.Server{Addr: *listen, Handler: aggregate(client, *backend)}
	log.Fatal(server.ListenAndServe())
}

func aggregate(client *http.Client, backend string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		all := make(chan heard, len(names))
		for place := range names {
			go func() {
				body, err := call(ctx, client, backend, r)
				all <- heard{place, body, err}
			}()
		}
		var bodies [len(names)]json.RawMessage
		for range names {
			one := <-all
			if one.err != nil {
				http.Error(w, "a part of the answer cannot be had", http.StatusBadGateway)
				return
			}
			bodies[one.place] = one.body
		}
		// In the order of the names; json.Marshal of a map would sort and copy once more.
		var answer bytes.Buffer
		for place, name := range names {
			if place == 0 {
				answer.WriteString(`{"`)
			} else {
				answer.WriteString(`,"`)
			}
			answer.WriteString(name)
			answer.WriteString(`":`)
			answer.Write(bodies[place])
		}
		answer.WriteByte('}')
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer.Bytes())
	})
}

func call(ctx context.Context, client *http.Client, url string, from *http.Request) (json.RawMessage, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Host = from.Host
	request.Header.Set("Accept", "application/json")
	for _, name := range []string{"Accept-Language", "Traceparent", "Tracestate"} {
		if value := from.Header.Get(name); value != "" {
			request.Header.Set(name, value)
		}
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		return nil, errors.New(response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, mostOfABody+1))
	if err != nil {
		return nil, err
	}
	if len(body) > mostOfABody || !json.Valid(body) {
		return nil, errors.New("not JSON, or too much of it")
	}
	return body, nil
}
