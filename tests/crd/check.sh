#!/usr/bin/env bash
# Asks a real API server, in which crds/ are applied, about each case: good/ is accepted, bad/ is refused with the words
# behind "# expect:" in its first line. Nothing is stored. Uses $KUBECTL (default: kubectl), $KUBECONFIG and $NAMESPACE
# (default: default), in which no objects of these names may be.
set -uo pipefail
cd "$(dirname "$0")"
kubectl=${KUBECTL:-kubectl} failed=0
# A folder at once: it goes on behind an error, which names the file.
ask() { "$kubectl" create --namespace "${NAMESPACE:-default}" --dry-run=server --validate=strict -f "$1" 2>&1; }
# About a file: its error's first line, and those that belong to it.
about() { awk -v name="\"$1\"" '/^[Ee]rror/ { mine = index($0, name) } mine'; }

good=(good/*.yaml) bad=(bad/*.yaml)
said=$(ask good) || { echo "NOT ACCEPTED: $(grep -v 'created (server dry run)$' <<< "$said")"; failed=1; }
created=$(grep -c 'created (server dry run)$' <<< "$said")
[ "$created" -ge ${#good[@]} ] || { echo "of ${#good[@]} good cases $created were accepted"; failed=1; }
said=$(ask bad)
for case in "${bad[@]}"; do
  expected=$(sed -n '1s/^# expect: //p' "$case")
  [ -n "$expected" ] || { echo "NO EXPECTATION $case"; failed=$((failed + 1)); continue; }
  its=$(about "$case" <<< "$said")
  if [ -z "$its" ]; then
    echo "NOT REFUSED $case"; failed=$((failed + 1))
  elif [[ $its != *"$expected"* ]]; then
    echo "OTHER WORDS $case: expected \"$expected\", the API server said: $its"; failed=$((failed + 1))
  fi
done
echo "$((${#good[@]} + ${#bad[@]})) cases, $failed failed"
[ "$failed" = 0 ]
