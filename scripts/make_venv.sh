#!/bin/sh
# Make a virtual environment with pip in the folder $1, with any Python 3.11 or newer on PATH.
# PYTHON=/path/to/python chooses one. If `python -m venv` cannot install pip (Debian and Ubuntu
# have ensurepip in a separate package), pip comes from a pip outside of it, or from virtualenv or uv.
set -eu

venv=$1

runs() { command -v "$1" >/dev/null 2>&1 && "$@" >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3 python python3.14 python3.13 python3.12 python3.11; do
        if runs "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$candidate"
            return
        fi
    done
    echo "tensorlite needs Python 3.11 or newer, and there is none on PATH: install one, or name it with 'make train PYTHON=/path/to/python'." >&2
    return 1
}

with_ensurepip() { "$python" -m venv --clear "$venv"; }
with_virtualenv() { "$python" -m virtualenv --clear "$venv" || virtualenv --clear --python "$python" "$venv"; }
with_uv() { uv venv --clear --seed --python "$python" "$venv"; }
with_outer_pip() {
    "$python" -m venv --clear --without-pip "$venv"
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for outer in "$python" python3 python python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        runs "$outer" -m pip install --target "$site" pip && return
    done
}

python=$(find_python)
trap 'rm -rf "$venv"' EXIT # leave no incomplete environment
trap 'exit 130' INT TERM

for way in with_ensurepip with_outer_pip with_virtualenv with_uv; do
    if runs "$way" && runs "$venv/bin/python" -m pip --version; then
        trap - EXIT
        exit 0
    fi
done

echo "cannot make a virtual environment with $python: neither its ensurepip, nor pip, virtualenv or uv can be used; install one of them (on Debian and Ubuntu: apt install python3-venv)." >&2
exit 1
