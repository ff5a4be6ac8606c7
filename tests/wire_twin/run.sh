#!/bin/sh
# Runs the twin's tests against the server and client programs.
#
#   MTT_BIN_DIR=target/release tests/wire_twin/run.sh [--self] [--jobs N] [PART OF A NAME ...]
#
# The programs are looked for in $MTT_BIN_DIR (relative to the repository's root; default
# target/debug). The Python packages go into .venv at the root, unless a python with all of
# them is at hand ($PYTHON, default python3). --self tests the twin alone, without programs.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
export PYTHONDONTWRITEBYTECODE=1

has_packages() {
    "$1" -c 'import sys, lz4.block, nacl, cryptography; assert sys.version_info >= (3, 11)' 2>/dev/null
}

if [ -x "$root/.venv/bin/python" ] && has_packages "$root/.venv/bin/python"; then
    python=$root/.venv/bin/python
elif ! has_packages "$python"; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "run.sh: the twin needs Python 3.11 or newer; name one with PYTHON=" >&2
        exit 2
    }
    "$python" -m venv "$root/.venv"
    python=$root/.venv/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
fi

programs=yes
for argument in "$@"; do
    case $argument in --self | --list | unit*) programs=no ;; esac
done
if [ "$programs" = yes ]; then
    cd "$root"
    for program in minitcptunnel-server minitcptunnel-client; do
        if [ ! -x "${MTT_BIN_DIR:-target/debug}/$program" ]; then
            echo "run.sh: no $program in ${MTT_BIN_DIR:-target/debug}; build it or set MTT_BIN_DIR" >&2
            exit 2
        fi
    done
fi

exec "$python" "$here/test_twin.py" "$@"
