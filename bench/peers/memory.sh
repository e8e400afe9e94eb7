#!/usr/bin/env bash
# What a dialog takes that nobody uses, and whether memory stays flat over many calls: both of the control plane alone.
#
#   bench/peers/memory.sh [IDLE [CALLS [RATE]]]      default: 2 000 idle calls, then 50 000 calls at 500 a second
#
# About five minutes. Needs a release build.
set -euo pipefail
cd "$(dirname "$0")/../.."

idle=${1:-2000} calls=${2:-50000} rate=${3:-500}
. bench/peers/tandem.sh
start_tandem
target=sip:null:demo-key@127.0.0.1:$sip

# What tables and pools take once is no call's.
bench setup --no-media --cps "$rate" --calls "$((idle < 2000 ? idle : 2000))" --target "$target" --target-pid "$control" >/dev/null
bench idle --no-media --concurrent "$idle" --cps "$rate" --target "$target" --target-pid "$control"
bench setup --no-media --cps "$rate" --calls "$calls" --target "$target" --target-pid "$control"
