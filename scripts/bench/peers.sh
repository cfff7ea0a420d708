#!/usr/bin/env bash
# Makes scripts/bench/.venv-peers with what the benchmarks compare with and keras_kd does not need:
# PyTorch, in an environment of its own. Again only where peers.txt or the Python changed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
peers=scripts/bench/.venv-peers
made_from="$("$PYTHON" --version) $(cksum <scripts/bench/peers.txt) $PWD"
if "$peers/bin/python" -c "" >/dev/null 2>&1 && [ "$(cat "$peers/made-from" 2>/dev/null)" = "$made_from" ]; then
  exit
fi
echo "Making scripts/bench/.venv-peers with PyTorch (once) …"
"$PYTHON" -m venv --clear "$peers"
"$peers/bin/python" -m pip install -qq --disable-pip-version-check --requirement scripts/bench/peers.txt
echo "$made_from" >"$peers/made-from"
