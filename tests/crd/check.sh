#!/usr/bin/env bash
# Asks a real API server, in which crds/ are applied, about each case: good/ is accepted, bad/ is refused with the words
# behind "# expect:" in its first line. Nothing is stored. Uses $KUBECTL (default: kubectl), $KUBECONFIG and $NAMESPACE
# (default: default), in which no objects of these names may be.
set -uo pipefail
cd "$(dirname "$0")"
kubectl=${KUBECTL:-kubectl} failed=0 count=0
ask() { "$kubectl" create --namespace "${NAMESPACE:-default}" --dry-run=server --validate=strict -f "$1" 2>&1; }
for case in good/*.yaml; do
  count=$((count + 1))
  said=$(ask "$case") || { echo "NOT ACCEPTED $case: $said"; failed=$((failed + 1)); }
done
for case in bad/*.yaml; do
  count=$((count + 1))
  expected=$(sed -n '1s/^# expect: //p' "$case")
  [ -n "$expected" ] || { echo "NO EXPECTATION $case"; failed=$((failed + 1)); continue; }
  if said=$(ask "$case"); then
    echo "NOT REFUSED $case"; failed=$((failed + 1))
  elif [[ $said != *"$expected"* ]]; then
    echo "OTHER WORDS $case: expected \"$expected\", the API server said: $said"; failed=$((failed + 1))
  fi
done
echo "$count cases, $failed failed"
[ "$failed" = 0 ]
