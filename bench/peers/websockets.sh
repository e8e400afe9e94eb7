#!/usr/bin/env bash
# A call's media over a WebSocket, as Twilio sends it, said back: Tandem's engine (by its control plane, with the demo's
# echo), a server with Node's ws, and one with tokio-tungstenite, by turns, three times, under the same generator on the same
# cores, and the ratios of what a call costs them (processor time by the kernel's own count, for all).
#
#   bench/peers/websockets.sh [CALLS [SECONDS [ROUNDS]]]      default: 500 calls, 20 s, 3 rounds
#
# The generator has the first core, the target the last. The two others return each message as it came, without looking at
# it; the engine reads JSON and Base64, plays out, paces and writes anew: a ratio near 1 is a good one.
# Needs a release build, node with npm, and cargo (the peer is built at its first run).
set -euo pipefail
cd "$(dirname "$0")/../.."

calls=${1:-500} seconds=${2:-20} rounds=${3:-3}
. bench/peers/tandem.sh
command -v node >/dev/null || fail "node is missing: apt-get install --no-install-recommends nodejs npm"
[ -d bench/peers/websocket-ws/node_modules/ws ] || (cd bench/peers/websocket-ws && npm ci --ignore-scripts --silent)
cargo build --quiet --release --locked --manifest-path bench/peers/websocket-tungstenite/Cargo.toml --target-dir target/peers
start_tandem
engine=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["pid"])' "$folder/state/run/engine.json")

echo_peer() { # NAME PORT COMMAND…
  local name=$1 port=$2
  shift 2
  taskset -c "$last" "$@" "$port" >"$folder/$name.out" 2>&1 &
  started+=($!)
  for _ in $(seq 100); do
    if grep -q listening "$folder/$name.out"; then return; fi
    sleep 0.1
  done
  cat "$folder/$name.out" >&2
  fail "$name did not start"
}
ws_port=$(free_port)
echo_peer ws "$ws_port" node bench/peers/websocket-ws/echo.js
ws=${started[-1]}
tungstenite_port=$(free_port)
echo_peer tungstenite "$tungstenite_port" target/peers/release/websocket-tungstenite
tungstenite=${started[-1]}

drive() { # NAME ROUND ARGUMENTS…
  local name=$1 round=$2
  shift 2
  echo "== $name, round $round"
  bench twilio --concurrent "$calls" --cps 100 --duration "$seconds" --json "$folder/$name-$round.json" "$@"
}
# The first calls of a process pay for its tables and pages.
for round in warm-up $(seq "$rounds"); do
  drive tandem "$round" --url "http://$TANDEM_HTTP_LISTEN" --target-pid "$engine"
  drive ws "$round" --echo-peer "ws://127.0.0.1:$ws_port/" --target-pid "$ws"
  drive tungstenite "$round" --echo-peer "ws://127.0.0.1:$tungstenite_port/" --target-pid "$tungstenite"
done

python3 - "$folder" "$rounds" "$calls" <<'PYTHON'
import json, statistics, sys
folder, rounds, calls = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def read(name, n): return json.load(open(f"{folder}/{name}-{n}.json"))
names = ("tandem", "ws", "tungstenite")
print(f"\n{calls} calls over WebSockets, 20 ms of µ-law both ways, each round side by side")
print("| round | | failed | drops | frames lost | round trip p50 / p99 ms | schedule p99.9 ms | CPU ms a call-second |")
print("|---|---|---|---|---|---|---|---|")
costs = {name: [] for name in names}
for n in range(1, rounds + 1):
    for name in names:
        r = read(name, n)
        costs[name].append(r["engine"]["cpu_ms_per_call_s"])
        trip = r["round_trip_ms"] or {"p50": 0, "p99": 0}
        print(f"| {n} | {name} | {r['calls']['failed']} | {r['drops']} | {r['rtp']['lost']} "
              f"| {trip['p50']:.2f} / {trip['p99']:.2f} | {r['schedule_ms']['p999']:.2f} | {costs[name][-1]:.3f} |")
for name in names[1:]:
    ratios = [ours / theirs for ours, theirs in zip(costs["tandem"], costs[name])]
    print(f"ratio of processor time, Tandem to {name}: {', '.join(f'{r:.2f}' for r in ratios)}; median {statistics.median(ratios):.2f}")
PYTHON
