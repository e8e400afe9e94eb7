# Sourced by the scripts beside it: a Tandem of its own on the last core, with the demo assistants, on free ports, ended with
# the script. Sets bin, folder, first, last (cores), sip (its port), control (process id of its control plane).
bin=${CARGO_TARGET_DIR:-target}/release
folder=$(mktemp -d)
first=$(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')
last=$(taskset -cp $$ | sed 's/.*: //; s/.*[-,]//')
started=()

fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

stop() {
  local pid
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap stop EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start_tandem() {
  local program
  for program in tandem tandem-engine tandem-bench; do
    [ -x "$bin/$program" ] ||
      fail "$bin/$program is not built: cargo build --release -p control-plane -p media-engine -p tandem-bench"
  done
  [ "$first" != "$last" ] || echo "${0##*/}: one core only: the figures say little" >&2
  sip=$(free_port)
  export TANDEM_STATE_DIR=$folder/state TANDEM_SIP_LISTEN=udp:127.0.0.1:$sip TANDEM_HTTP_LISTEN=127.0.0.1:$(free_port)
  export TANDEM_ENGINE_GRPC_LISTEN=127.0.0.1:$(free_port) TANDEM_ENGINE_METRICS_LISTEN=127.0.0.1:$(free_port)
  export TANDEM_ENGINE_WS_LISTEN=127.0.0.1:$(free_port) TANDEM_ENGINE_AUDIOSOCKET_LISTEN=127.0.0.1:$(free_port)
  taskset -c "$last" "$bin/tandem" up --demo --no-call --no-voice >"$folder/tandem.out" 2>&1 &
  started+=($!)
  local up=$!
  for _ in $(seq 300); do
    if grep -q 'everything runs' "$folder/tandem.out"; then break; fi
    kill -0 "$up" 2>/dev/null || { cat "$folder/tandem.out" >&2; fail "tandem up ended"; }
    sleep 0.1
  done
  control=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["pid"])' "$folder/state/run/control.json")
}

# A run that the generator itself has spoilt (exit code 3) says nothing: once more, three times at most.
bench() {
  local attempt code
  for attempt in 1 2 3; do
    code=0
    "$bin/tandem-bench" "$@" --quiet --core "$first" --target-core "$last" || code=$?
    [ "$code" = 3 ] || return "$code"
  done
  fail "the generator was the bottleneck three times: lower the rate, or wait for a quiet machine"
}
