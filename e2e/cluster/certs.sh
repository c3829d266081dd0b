#!/usr/bin/env bash
# certs.sh FOLDER SERVER_URL SAN...   One CA, the serving certificates, a client certificate with kubeconfig for each
# component, and the key of the service accounts.
set -euo pipefail
mkdir -p "$1"; cd "$1"; url=$2; shift 2; umask 077
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key" 2>/dev/null; }
key ca
openssl req -x509 -new -key ca.key -subj /CN=e2e-ca -days 30 -out ca.crt \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
openssl genrsa -out sa.key 2048 2>/dev/null; openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
cert() { # name subject usage [names]
  key "$1"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  { echo "basicConstraints=critical,CA:FALSE"; echo "keyUsage=critical,digitalSignature"
    echo "extendedKeyUsage=$3"; [ -z "${4:-}" ] || echo "subjectAltName=$4"; } > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
  rm "$1.csr" "$1.ext"
}
client() { # name subject
  cert "$1" "$2" clientAuth
  cat > "$1.kubeconfig" <<Y
apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "$url", certificate-authority-data: "$(base64 -w0 ca.crt)"}}]
users: [{name: $1, user: {client-certificate-data: "$(base64 -w0 "$1.crt")", client-key-data: "$(base64 -w0 "$1.key")"}}]
contexts: [{name: e2e, context: {cluster: e2e, user: $1}}]
current-context: e2e
Y
}
names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc
for a in "$@"; do case $a in *[a-z]*) names="$names,DNS:$a";; *) names="$names,IP:$a";; esac; done
cert apiserver /CN=kube-apiserver serverAuth "$names"
cert kubelet-serving /CN=system:node:node1/O=system:nodes serverAuth "$names"
client admin /O=system:masters/CN=e2e-admin
client apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
client controller-manager /CN=system:kube-controller-manager
client scheduler /CN=system:kube-scheduler
client kube-proxy /CN=system:kube-proxy
client node /O=system:nodes/CN=system:node:node1
