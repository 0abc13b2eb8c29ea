#!/usr/bin/env bash
# What is given away: sdist and wheel by `python -m build`, each installed from its file into an empty environment outside of
# the repository, where a small run must end with a result. `built.sh PYTHON`.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
constraints=$PWD/constraints.txt

"$python" -m venv "$work/build"
"$work/build/bin/pip" install --quiet --disable-pip-version-check build
"$work/build/bin/python" -m build --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }

for kind in sdist wheel; do
    case $kind in sdist) file=$(ls "$work"/dist/*.tar.gz) ;; wheel) file=$(ls "$work"/dist/*.whl) ;; esac
    at=$work/$kind
    "$python" -m venv "$at"
    "$at/bin/pip" install --quiet --disable-pip-version-check -c "$constraints" "$file[demo]"
    cd "$at"
    bin/sparcl info >info.txt
    grep -q 'backend native.*available' info.txt || { cat info.txt; exit 1; }
    ls lib/python*/site-packages/sparcl_edge-*.dist-info/licenses/LICENSE >/dev/null
    bin/sparcl run seq-digits --epochs 1 --limit-per-class 20 --threads 1 --backend native --out run >run.txt
    test -s run/result.json
    echo "$kind: $(basename "$file"), $(($(stat -c %s "$file") / 1000)) kB: installed, a run done"
    cd - >/dev/null
done
