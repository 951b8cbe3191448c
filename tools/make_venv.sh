#!/bin/sh
# Makes the virtual environment DIRECTORY with this project, editable, and the extras EXTRAS in it.
#   tools/make_venv.sh DIRECTORY EXTRAS          e.g. tools/make_venv.sh .venv dev
# The first of python3.13, python3.12, python3.11, python3 that runs, is new enough and can make environments is taken
# (a name on the PATH proves nothing: it may be a version manager's shim for a version that is not installed);
# PYTHON=... names another one.
set -eu
directory=$1
extras=$2

suits() { # runs, is 3.11 or later, has venv and ensurepip
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ ! -x "$directory/bin/python" ] || ! "$directory/bin/python" -m pip --version >/dev/null 2>&1; then
    chosen=""
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 /usr/bin/python3}; do
        if suits "$candidate"; then
            chosen=$candidate
            break
        fi
    done
    if [ -z "$chosen" ]; then
        echo "No Python 3.11, 3.12 or 3.13 with the venv module was found (Debian: apt-get install python3-venv);" \
            "PYTHON=/path/to/python make ... names one." >&2
        exit 1
    fi
    echo "making $directory with $("$chosen" --version)"
    rm -rf "$directory"
    "$chosen" -m venv "$directory"
fi
"$directory/bin/python" -m pip install -qq --disable-pip-version-check --editable ".[$extras]"
