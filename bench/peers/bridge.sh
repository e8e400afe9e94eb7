#!/usr/bin/env bash
# Two RTP legs joined and transcoded, PCMU on one side and PCMA on the other: Tandem's engine and rtpengine (in user space),
# one after the other, three times, under the same generator on the same cores, and the ratio of what a bridge costs them
# (processor time by the kernel's own count, for both).
#
#   bench/peers/bridge.sh [BRIDGES [SECONDS [ROUNDS]]]      default: 250 bridges, 20 s, 3 rounds
#
# The generator has the first core, the target the last. Needs Debian's rtpengine-daemon (its service may stay off: no kernel
# module is used) and a release build.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin

bridges=${1:-250} seconds=${2:-20} rounds=${3:-3}
. bench/peers/tandem.sh
command -v rtpengine >/dev/null || fail "rtpengine is missing: apt-get install --no-install-recommends rtpengine-daemon"
for program in tandem-engine tandem-bench; do
  [ -x "$bin/$program" ] || fail "$bin/$program is not built: cargo build --release -p media-engine -p tandem-bench"
done

grpc=$(free_port)
TANDEM_ENGINE_GRPC_LISTEN=127.0.0.1:$grpc TANDEM_ENGINE_METRICS_LISTEN=127.0.0.1:$(free_port) \
  TANDEM_ENGINE_WS_LISTEN=127.0.0.1:$(free_port) TANDEM_ENGINE_AUDIOSOCKET_LISTEN=127.0.0.1:$(free_port) \
  TANDEM_ENGINE_RTP_PORTS=20000-23999 TANDEM_ENGINE_CORES=$last TANDEM_STATE_DIR=$folder/state \
  taskset -c "$last" "$bin/tandem-engine" >"$folder/engine.out" 2>&1 &
engine=$!
started+=("$engine")
ng=$(free_port)
# One thread, as the engine has one core; no kernel table.
taskset -c "$last" rtpengine --config-file=none --foreground --log-stderr --log-level=4 --table=-1 --num-threads=1 \
  --interface=127.0.0.1 --listen-ng="127.0.0.1:$ng" --port-min=24000 --port-max=31999 >"$folder/rtpengine.out" 2>&1 &
rtpengine=$!
started+=("$rtpengine")
sleep 2
kill -0 "$engine" 2>/dev/null || { cat "$folder/engine.out" >&2; fail "tandem-engine ended"; }
kill -0 "$rtpengine" 2>/dev/null || { cat "$folder/rtpengine.out" >&2; fail "rtpengine ended"; }

drive() { # NAME ROUND ARGUMENTS…
  local name=$1 round=$2
  shift 2
  echo "== $name, round $round"
  bench bridge --concurrent "$bridges" --duration "$seconds" --json "$folder/$name-$round.json" "$@"
}
# The first bridges of a process pay for its tables and pages.
for round in warm-up $(seq "$rounds"); do
  drive tandem "$round" --engine "http://127.0.0.1:$grpc" --target-pid "$engine"
  drive rtpengine "$round" --rtpengine "127.0.0.1:$ng" --target-pid "$rtpengine"
done

python3 - "$folder" "$rounds" "$bridges" <<'PYTHON'
import json, statistics, sys
folder, rounds, bridges = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def read(name, n): return json.load(open(f"{folder}/{name}-{n}.json"))
print(f"\n{bridges} bridges of two legs, PCMU and PCMA, each round side by side")
print("| round | | failed | RTP lost / reordered | audio lost / filled | round trip p50 / p99 ms | schedule p99.9 ms | CPU ms a bridge-second |")
print("|---|---|---|---|---|---|---|---|")
ratios = []
for n in range(1, rounds + 1):
    cost = {}
    for name in ("tandem", "rtpengine"):
        r = read(name, n)
        cost[name] = r["engine"]["cpu_ms_per_call_s"]
        audio, trip = r["audio"] or {"lost": "-", "filled": "-"}, r["round_trip_ms"] or {"p50": 0, "p99": 0}
        print(f"| {n} | {name} | {r['calls']['failed']} | {r['rtp']['lost']} / {r['rtp']['reordered']} | {audio['lost']} / {audio['filled']} "
              f"| {trip['p50']:.2f} / {trip['p99']:.2f} | {r['schedule_ms']['p999']:.2f} | {cost[name]:.3f} |")
    ratios.append(cost["tandem"] / cost["rtpengine"])
print(f"ratio of processor time, Tandem to rtpengine: {', '.join(f'{r:.2f}' for r in ratios)}; median {statistics.median(ratios):.2f}")
PYTHON
