#!/usr/bin/env bash
# Set-up and tear-down of calls without media: Tandem and Kamailio, one after the other, three times, driven by the same
# generator at the same rate on the same cores, and the ratio of what a call costs them (processor time by the kernel's
# own count, for both).
#
#   bench/peers/setup.sh [RATE [SECONDS [ROUNDS]]]      default: 500 calls a second, 20 s, 3 rounds
#
# The generator has the first core, the target the last. Needs kamailio (scripts/setup.sh test) and a release build:
#   cargo build --release -p control-plane -p media-engine -p tandem-bench
set -euo pipefail
cd "$(dirname "$0")/../.."

rate=${1:-500} seconds=${2:-20} rounds=${3:-3}
bin=${CARGO_TARGET_DIR:-target}/release
folder=$(mktemp -d)
first=$(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')
last=$(taskset -cp $$ | sed 's/.*: //; s/.*[-,]//')
tandem= kamailio=

fail() { printf 'setup.sh: %s\n' "$*" >&2; exit 1; }
stop() {
  for pid in $tandem $kamailio; do kill "$pid" 2>/dev/null || true; done
  for pid in $tandem $kamailio; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap stop EXIT

for program in tandem tandem-engine tandem-bench; do
  [ -x "$bin/$program" ] || fail "$bin/$program is not built"
done
command -v kamailio >/dev/null || fail "kamailio is missing: scripts/setup.sh test installs it"
[ "$first" != "$last" ] || echo "setup.sh: one core only: the figures say little" >&2

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
sip=$(free_port) http=$(free_port) kamailio_port=$(free_port)

export TANDEM_STATE_DIR=$folder/state TANDEM_SIP_LISTEN=udp:127.0.0.1:$sip TANDEM_HTTP_LISTEN=127.0.0.1:$http
export TANDEM_ENGINE_GRPC_LISTEN=127.0.0.1:$(free_port) TANDEM_ENGINE_METRICS_LISTEN=127.0.0.1:$(free_port)
export TANDEM_ENGINE_WS_LISTEN=127.0.0.1:$(free_port) TANDEM_ENGINE_AUDIOSOCKET_LISTEN=127.0.0.1:$(free_port)
taskset -c "$last" "$bin/tandem" up --demo --no-call --no-voice >"$folder/tandem.out" 2>&1 &
tandem=$!
for _ in $(seq 150); do
  grep -q 'everything runs' "$folder/tandem.out" && break
  kill -0 "$tandem" 2>/dev/null || { cat "$folder/tandem.out" >&2; fail "tandem up ended"; }
  sleep 0.1
done
control=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["pid"])' "$folder/state/run/control.json")

taskset -c "$last" kamailio -f bench/peers/kamailio.cfg -A "LISTEN=127.0.0.1:$kamailio_port" -DD -E -m 256 -M 16 \
  -Y "$folder" >"$folder/kamailio.out" 2>&1 &
kamailio=$!
sleep 1
kill -0 "$kamailio" 2>/dev/null || { cat "$folder/kamailio.out" >&2; fail "kamailio ended"; }

drive() { # NAME PID TARGET ROUND
  echo "== $1, round $4"
  "$bin/tandem-bench" setup --no-media --quiet --cps "$rate" --duration "$seconds" --core "$first" --target-core "$last" \
    --target "$3" --target-pid "$2" --json "$folder/$1-$4.json"
}
# The first calls of a process pay for its tables and pages.
for name in warm-up $(seq "$rounds"); do
  drive tandem "$control" "sip:null:demo-key@127.0.0.1:$sip" "$name"
  drive kamailio "$kamailio" "sip:peer@127.0.0.1:$kamailio_port" "$name"
done

python3 - "$folder" "$rounds" "$rate" <<'PYTHON'
import json, statistics, sys
folder, rounds, rate = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def read(name, n): return json.load(open(f"{folder}/{name}-{n}.json"))
print(f"\n{rate} calls a second, no media, each round side by side")
print("| round | | completed a second | failed | own retransmissions | INVITE to 200 p50 / p99 ms | CPU µs a call |")
print("|---|---|---|---|---|---|---|")
ratios = []
for n in range(1, rounds + 1):
    cost = {}
    for name in ("tandem", "kamailio"):
        r = read(name, n)
        cost[name] = r["target"]["cpu_us_per_call"]
        print(f"| {n} | {name} | {r['setup']['per_second']:.1f} | {r['setup']['failed']} | {r['setup']['retransmits']} "
              f"| {r['setup_ms']['p50']:.2f} / {r['setup_ms']['p99']:.2f} | {cost[name]:.0f} |")
    ratios.append(cost["tandem"] / cost["kamailio"])
print(f"ratio of processor time, Tandem to Kamailio: {', '.join(f'{r:.2f}' for r in ratios)}; median {statistics.median(ratios):.2f}")
PYTHON
