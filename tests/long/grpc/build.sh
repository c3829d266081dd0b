#!/usr/bin/env bash
# build.sh   Builds grpc-go's interop client and a server of the same cases, once for each state of this module, and
#            prints the folder that they are in.
set -euo pipefail
cd "$(dirname "$0")"
hash=$(cat go.mod go.sum build.sh server/main.go | sha256sum | cut -c1-12)
out=${PORTCULLIS_CACHE:-$HOME/.cache/portcullis}/grpc-$hash
mkdir -p "$out"
exec 9> "$out.lock"; flock 9   # two checkouts may start at once
if [ ! -e "$out/done" ]; then
  echo "building grpc-go's interop client and server from its Go module into $out" >&2
  CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false -ldflags "-s -w" -o "$out/client" \
    google.golang.org/grpc/interop/client
  CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false -ldflags "-s -w" -o "$out/server" ./server
  touch "$out/done"
fi
echo "$out"
