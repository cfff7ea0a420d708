# Sourced by demo, test and check: makes .venv with the pinned packages and this project in it,
# again only where requirements.txt, pyproject.toml, the Python or the folder changed.
# Afterwards the shell stands in the repository's root, and $PYTHON is the environment's Python.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="$PWD/.venv/bin/python"

# The first Python between 3.11 and 3.13 that runs; KERAS_KD_PYTHON names another.
find_python() {
  local candidate
  for candidate in ${KERAS_KD_PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
      >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  cat >&2 <<'WORDS'
There is no Python for keras_kd on this machine.
  given:    python3.11, python3.12, python3.13, python3 and python on the PATH, or KERAS_KD_PYTHON
  expected: one of them to be Python 3.11, 3.12 or 3.13
  fix:      install one of these, or name it: KERAS_KD_PYTHON=/path/to/python3.11 bash scripts/demo
WORDS
  return 1
}

# What the environment was made from, as one line; a different line means: install again.
fingerprint() {
  "$1" - <<'PROGRAM'
import hashlib, os, sys
contents = b"".join(open(name, "rb").read() for name in ("requirements.txt", "pyproject.toml"))
print(sys.version.split()[0], hashlib.sha256(contents).hexdigest(), os.getcwd())
PROGRAM
}

make_environment() {
  local python stamp=".venv/made-from"
  if "$PYTHON" -c "" >/dev/null 2>&1 && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint "$PYTHON")" ]; then
    return
  fi
  rm -f "$stamp"
  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    python="$(find_python)" || return 1
    echo "Making .venv with $("$python" --version) …"
    if ! "$python" -m venv --clear .venv >/dev/null; then
      echo "  fix:      this Python cannot make environments; on Debian and Ubuntu install python3-venv." >&2
      return 1
    fi
  fi
  echo "Installing $(grep -c '==' requirements.txt) pinned packages into .venv (a few minutes, once) …"
  "$PYTHON" -m pip install -qq --disable-pip-version-check --requirement requirements.txt
  "$PYTHON" -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps --editable .
  fingerprint "$PYTHON" >"$stamp"
}

make_environment
