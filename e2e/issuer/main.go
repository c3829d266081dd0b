// A small identity provider for tests, all of its cryptography and encoding by go-jose: discovery, a JWKS, tokens.
// Keys are named by the tests: POST /keys?kid=a&alg=ES256 makes and publishes one, DELETE /keys?kid=a withdraws it
// (tokens can still be had by it: /token?kid=a&sub=alice&aud=shop&ttl=60s). They are kept in a file, so that the provider
// may be killed: issuer ADDRESS FILE.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

type key struct {
	Kid       string
	Algorithm jose.SignatureAlgorithm
	Private   []byte
	Published bool
	signer    crypto.Signer
}

type provider struct {
	sync.Mutex
	issuer string
	file   string
	keys   []*key
}

func (p *provider) load() error {
	text, err := os.ReadFile(p.file)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &p.keys); err != nil {
		return err
	}
	for _, k := range p.keys {
		private, err := x509.ParsePKCS8PrivateKey(k.Private)
		if err != nil {
			return err
		}
		k.signer = private.(crypto.Signer)
	}
	return nil
}

func (p *provider) save() error {
	text, err := json.Marshal(p.keys)
	if err != nil {
		return err
	}
	return os.WriteFile(p.file, text, 0o600)
}

func generate(algorithm jose.SignatureAlgorithm) (crypto.Signer, error) {
	switch algorithm {
	case jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512:
		return rsa.GenerateKey(rand.Reader, 2048)
	case jose.ES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.ES384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case jose.EdDSA:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	}
	return nil, fmt.Errorf("no such algorithm: %s", algorithm)
}

func (p *provider) find(kid string) *key {
	for _, k := range p.keys {
		if k.Kid == kid {
			return k
		}
	}
	return nil
}

func (p *provider) manage(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	p.Lock()
	defer p.Unlock()
	if err := p.change(r.Method, query.Get("kid"), jose.SignatureAlgorithm(query.Get("alg"))); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func (p *provider) change(method, kid string, algorithm jose.SignatureAlgorithm) error {
	if method == http.MethodDelete {
		k := p.find(kid)
		if k == nil {
			return fmt.Errorf("no such key: %s", kid)
		}
		k.Published = false
		return p.save()
	}
	signer, err := generate(algorithm)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return err
	}
	p.keys = append(p.keys, &key{kid, algorithm, private, true, signer})
	return p.save()
}

func (p *provider) jwks(w http.ResponseWriter, _ *http.Request) {
	p.Lock()
	defer p.Unlock()
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range p.keys {
		if k.Published {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.signer.Public(), KeyID: k.Kid, Algorithm: string(k.Algorithm), Use: "sig"})
		}
	}
	answer(w, set)
}

func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	p.Lock()
	k := p.find(query.Get("kid"))
	p.Unlock()
	if k == nil {
		http.Error(w, "no such key", http.StatusNotFound)
		return
	}
	ttl, err := time.ParseDuration(query.Get("ttl"))
	if err != nil {
		ttl = time.Minute
	}
	signing := jose.SigningKey{Algorithm: k.Algorithm, Key: jose.JSONWebKey{Key: k.signer, KeyID: k.Kid}}
	signer, err := jose.NewSigner(signing, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	now := time.Now()
	claims := jwt.Claims{
		Issuer: p.issuer, Subject: query.Get("sub"), Audience: jwt.Audience{query.Get("aud")}, ID: fmt.Sprint(now.UnixNano()),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(ttl)),
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprint(w, token)
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(value); err != nil {
		log.Print(err)
	}
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	p := &provider{issuer: "http://" + listener.Addr().String(), file: os.Args[2]}
	if err := p.load(); err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"issuer": p.issuer, "jwks_uri": p.issuer + "/jwks", "response_types_supported": []string{"code"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256"}})
	})
	http.HandleFunc("/jwks", p.jwks)
	http.HandleFunc("/keys", p.manage)
	http.HandleFunc("/token", p.token)
	log.Fatal(http.Serve(listener, nil))
}
