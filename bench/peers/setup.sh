#!/usr/bin/env bash
# Set-up and tear-down of calls without media: Tandem and Kamailio, one after the other, three times, driven by the same
# generator at the same rate on the same cores, and the ratio of what a call costs them (processor time by the kernel's
# own count, for both).
#
#   bench/peers/setup.sh [RATE [SECONDS [ROUNDS]]]      default: 500 calls a second, 20 s, 3 rounds
#
# The generator has the first core, the target the last. Needs kamailio (scripts/setup.sh test) and a release build.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin

rate=${1:-500} seconds=${2:-20} rounds=${3:-3}
. bench/peers/tandem.sh
command -v kamailio >/dev/null || fail "kamailio is missing: scripts/setup.sh test installs it"
start_tandem
kamailio_port=$(free_port)

taskset -c "$last" kamailio -f bench/peers/kamailio.cfg -A "LISTEN=127.0.0.1:$kamailio_port" -DD -E -m 256 -M 16 \
  -Y "$folder" >"$folder/kamailio.out" 2>&1 &
kamailio=$!
started+=("$kamailio")
sleep 1
kill -0 "$kamailio" 2>/dev/null || { cat "$folder/kamailio.out" >&2; fail "kamailio ended"; }

drive() { # NAME PID TARGET ROUND
  echo "== $1, round $4"
  bench setup --no-media --cps "$rate" --duration "$seconds" --target "$3" --target-pid "$2" --json "$folder/$1-$4.json"
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
