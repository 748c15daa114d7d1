#!/bin/sh
# Records tests/data/tiny anew: makes an environment of its own, fetches llama.cpp's converter, and runs both.
#
#   tests/oracles/record.sh [NAME ...]
#
# It needs Python 3.11 or newer and 3 GB under build/oracles, and takes five minutes. On Linux, PyPI's torch brings CUDA
# with it; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu in the environment spares that.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$here/../../build/oracles
python=$build/venv/bin/python
source=$build/llama_cpp_python-0.3.36

mkdir -p "$build"
[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$build/venv"
"$python" -m pip install --quiet --requirement "$here/requirements.txt"
if [ ! -d "$source" ]; then
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --require-hashes \
        --dest "$build" --requirement "$here/llama_cpp.txt"
    tar -xzf "$source.tar.gz" -C "$build"
fi
exec "$python" "$here/record_tiny.py" "$source/vendor/llama.cpp" "$@"
