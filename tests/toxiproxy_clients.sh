#!/usr/bin/env bash
# The clients of Toxiproxy, unchanged and by the names they have in their registries, against `seawall toxiproxy`:
# PyPI toxiproxy-python, npm toxiproxy-node-client, the crate toxiproxy_rust with its own tests, and a live run of Chaos
# Toolkit with chaostoolkit-toxiproxy. Some of them know no other port than 8474, so that one must be free.
#   tests/toxiproxy_clients.sh [PROGRAM]     PROGRAM defaults to target/debug/seawall
set -euo pipefail
cd "$(dirname "$0")/.."
seawall=$(realpath "${1:-target/debug/seawall}")
here=$PWD/tests/clients
tools=$PWD/target/tools/toxiproxy-clients
mkdir -p "$tools"
server=""

stop() { if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; server=""; fi; }
trap stop EXIT

# A fresh server for each client, so that none finds what another has left.
start() {
  stop
  "$seawall" toxiproxy -host 127.0.0.1 -seed 42 -proxy-metrics 2>"$tools/server.log" &
  server=$!
  for _ in $(seq 600); do
    if grep -q "Toxiproxy's API" "$tools/server.log"; then return; fi
    if ! kill -0 "$server" 2>/dev/null; then break; fi
    sleep 0.05
  done
  cat "$tools/server.log"
  echo "the server did not start: is port 8474 free?"
  return 1
}

echo "clients: installing into target/tools/toxiproxy-clients"
if [ ! -e "$tools/python.done" ]; then
  python3 -m venv "$tools/python"
  "$tools/python/bin/pip" install --quiet --disable-pip-version-check \
    toxiproxy-python==0.1.1 chaostoolkit==1.19.0 chaostoolkit-toxiproxy==0.3.1
  touch "$tools/python.done"
fi
if [ ! -e "$tools/node.done" ]; then
  mkdir -p "$tools/node"
  npm install --silent --no-audit --no-fund --prefix "$tools/node" toxiproxy-node-client@4.1.0
  touch "$tools/node.done"
fi
if [ ! -e "$tools/crate.done" ]; then
  # The crate's tests are in the crate: fetch it as a dependency, then build a copy of it.
  mkdir -p "$tools/fetch/src"
  : >"$tools/fetch/src/lib.rs"
  cat >"$tools/fetch/Cargo.toml" <<'TOML'
[package]
name = "fetch"
version = "0.0.0"
edition = "2021"
[dependencies]
toxiproxy_rust = "=0.1.6"
[workspace]
TOML
  host=$(rustc -vV | sed -n 's/^host: //p')
  manifest=$(cargo metadata --quiet --format-version 1 --filter-platform "$host" --manifest-path "$tools/fetch/Cargo.toml" |
    python3 -c 'import json,sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "toxiproxy_rust"))')
  rm -rf "$tools/crate"
  cp -r "$(dirname "$manifest")" "$tools/crate"
  chmod -R u+w "$tools/crate"
  printf '\n[workspace]\n' >>"$tools/crate/Cargo.toml"
  CARGO_TARGET_DIR=$tools/crate-target cargo test --quiet --manifest-path "$tools/crate/Cargo.toml" --test toxiproxy_rust --no-run
  touch "$tools/crate.done"
fi

start
"$tools/python/bin/python" "$here/python_client.py"

start
NODE_PATH=$tools/node/node_modules node "$here/node_client.js"

start
CARGO_TARGET_DIR=$tools/crate-target cargo test --quiet --manifest-path "$tools/crate/Cargo.toml" --test toxiproxy_rust \
  -- --test-threads 1

# Chaos Toolkit slows down the way to something that serves pages: the server's own API.
start
"$tools/python/bin/python" - <<'PY'
import requests
body = {"name": "page", "listen": "127.0.0.1:18475", "upstream": "127.0.0.1:8474"}
assert requests.post("http://127.0.0.1:8474/proxies", json=body).status_code == 201
PY
(cd "$tools" && "$tools/python/bin/chaos" --no-version-check --log-file "$tools/chaos.log" run \
  --journal-path "$tools/journal.json" "$here/experiment.json" >"$tools/chaos.out" 2>&1) || { cat "$tools/chaos.out"; exit 1; }
"$tools/python/bin/python" - "$tools/journal.json" <<'PY'
import json, sys
import requests
journal = json.load(open(sys.argv[1]))
steps = journal["run"] + journal["rollbacks"]
wrong = [step["activity"]["name"] for step in steps if step["status"] != "succeeded" or step.get("tolerance_met") is False]
assert journal["status"] == "completed" and not journal["deviated"] and not wrong, (journal["status"], wrong)
slow = next(step for step in steps if step["activity"]["name"] == "slow-page-is-served")
assert slow["duration"] >= 0.29, slow["duration"]
page = requests.get("http://127.0.0.1:8474/proxies/page").json()
assert page["enabled"] and page["toxics"] == [], page
print(f"chaos run: completed, {len(steps)} of {len(steps)} steps succeeded")
PY
stop
if grep -q panicked "$tools/server.log"; then cat "$tools/server.log"; exit 1; fi
echo "clients: all of them work unchanged"
