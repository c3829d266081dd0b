#!/usr/bin/env bash
# fetch.sh   Brings the modules that build.sh would wait for, while the machine has other things to do.
set -euo pipefail
cd "$(dirname "$0")"
CGO_ENABLED=0 go list -mod=readonly -deps ./... helm.sh/helm/v3/cmd/helm > /dev/null
