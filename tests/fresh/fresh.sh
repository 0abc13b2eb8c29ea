#!/usr/bin/env bash
# The README's commands where nothing else is: two bare Debian 12 systems, made by debootstrap and entered by chroot, in which
# an unprivileged user has a clone of HEAD. One has python3, python3-venv, python3-dev, make and g++: `make demo`, `make test`,
# and what `python -m build` builds. The other has no compiler: the package installs, says so, and its tests pass.
# Needs root and Debian's debootstrap. The result is docs/fresh.md; the logs, and the bare systems for the next time, are
# under build/fresh. `MIRROR=URL` names Debian's mirror; else it is that of this machine's apt.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
    echo "make fresh needs root and debootstrap: apt-get install debootstrap" >&2
    exit 2
fi
if [ -z "${FRESH_APART:-}" ]; then # mounts of our own, which end with this process
    FRESH_APART=1 exec unshare --mount --propagation private "$0" "$@"
fi

keep=$PWD/build/fresh
mkdir -p "$keep"
work=$(mktemp -d)
clean() { # whatever is still mounted is never removed with its folder
    awk -v at="$work/" 'index($2, at) == 1 {print $2}' /proc/self/mounts | sort -r | xargs -r umount --lazy
    grep -q " $work/" /proc/self/mounts || rm -rf "$work"
}
trap clean EXIT

# bare ROOT PACKAGES: a minimal system with these packages and nothing else
bare() {
    local kept="$keep/$(basename "$1").tar" mirror=${MIRROR:-}
    if [ ! -e "$kept" ]; then
        if [ -z "$mirror" ] && command -v apt-get >/dev/null; then
            mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' | awk '$1 == "Debian" {print $2; exit}')
        fi
        debootstrap --variant=minbase --include="$2" bookworm "$1.made" ${mirror:+"$mirror"} >"$kept.log"
        tar -C "$1.made" --exclude='./dev/*' --exclude='./proc/*' --exclude='./var/cache/apt/*' -cf "$kept.part" .
        mv "$kept.part" "$kept"
        rm -rf "$1.made"
    fi
    mkdir "$1"
    tar -C "$1" -xf "$kept"
    chroot "$1" useradd --create-home fresh
    git clone --quiet --no-hardlinks . "$1/home/fresh/sparcl"
    chroot "$1" chown -R fresh:fresh /home/fresh
    mount -t proc proc "$1/proc"
    for device in null zero full random urandom; do
        touch "$1/dev/$device"
        mount --bind "/dev/$device" "$1/dev/$device"
    done
    mkdir "$1/dev/shm"
    mount -t tmpfs tmpfs "$1/dev/shm"
    bring_index "$1"
}

# bring_index ROOT: names are looked up and pip asks the same indexes as on this machine, whatever they are
bring_index() {
    cp /etc/resolv.conf /etc/hosts "$1/etc/"
    {
        echo "[global]"
        python3 -m pip config list | sed -n "s/^[^=]*\.\([a-z-]*\)='\(.*\)'$/\1 = \2/p" | awk -F ' = ' '!seen[$1]++'
    } >"$1/etc/pip.conf"
    local path word words
    words=$(sed -n 's/.* = //p' "$1/etc/pip.conf" | sed 's/\\n/ /g')
    for word in $words ${SSL_CERT_FILE:-} ${REQUESTS_CA_BUNDLE:-} ${CURL_CA_BUNDLE:-}; do
        path=${word#file://}
        if [ "$path" != "$word" ]; then path=$(dirname "$path"); fi # an index's files lie beside its pages
        if [[ $path == /?* && -d $path ]]; then
            mkdir -p "$1$path"
            mountpoint -q "$1$path" || mount --bind -o ro "$path" "$1$path"
        elif [[ $path == /* && -f $path ]]; then
            mkdir -p "$1$(dirname "$path")"
            cp -L "$path" "$1$path"
        fi
    done
}

# inside ROOT COMMAND: in the clone, as the user, with no variable but what reaching the index and the processor take
inside() {
    local passed
    mapfile -t passed < <(env | grep -iE '^((https?|no|all)_proxy|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|(OPENBLAS|OMP)_[A-Z0-9_]*)=')
    chroot --userspec=fresh:fresh "$1" /usr/bin/env -i HOME=/home/fresh PATH=/usr/bin:/bin "${passed[@]}" \
        sh -ec "cd /home/fresh/sparcl; $2"
}

# step NAME ROOT COMMAND: with a log; what fails ends all
step() {
    local since=$SECONDS log=$keep/$1.log
    if ! inside "$2" "$3" >"$log" 2>&1 </dev/null; then
        tail -n 30 "$log" >&2
        echo "$1 failed: $log" >&2
        exit 1
    fi
    echo "$1: $((SECONDS - since)) s"
}
tests() { grep -E '^[0-9]+ passed' "$keep/$1.log" | tail -n 1; }
native() { sed -n 's/.*backend native[^a-z]*\([a-z]*\).*/\1/p' "$keep/$1.log" | head -n 1; }

commit=$(git rev-parse --short HEAD)
full=$work/compiler without=$work/none
with_compiler() {
    bare "$full" python3,python3-venv,python3-dev,make,g++
    step install "$full" "make install; .venv/bin/sparcl info"
    grep -q 'backend native.*available' "$keep/install.log"
    step demo "$full" "make demo"
    step test "$full" "make test"
    step built "$full" "make test-built"
}
without_compiler() {
    bare "$without" python3,python3-venv,make
    step install-without "$without" "make install; .venv/bin/sparcl info"
    grep -q 'missing: the compiled part of sparcl' "$keep/install-without.log"
    step test-without "$without" "make test"
}
with_compiler & # side by side: tests wait for much of their time
first=$!
without_compiler &
second=$!
failed=
wait "$first" || failed=yes
wait "$second" || failed=yes
[ -z "$failed" ] || exit 1

cat >docs/fresh.md <<END
# On a machine that has never seen the project

\`make fresh\` makes two bare Debian 12 systems, gives an unprivileged user a clone in each, and runs
the README's commands. Its last result, written by it:

| | |
|---|---|
| date, commit | $(date -u +%F), $commit |
| system | Debian $(cat "$full/etc/debian_version"), $(inside "$full" 'python3 --version'), $(inside "$full" 'g++ --version | head -n 1') |
| \`make install\`, \`sparcl info\` | backend native $(native install) |
| \`make demo\` | done |
| \`make test\` | $(tests test) |
| \`make test-built\`, the sdist | $(grep '^sdist:' "$keep/built.log" | sed 's/^sdist: //') |
| \`make test-built\`, the wheel | $(grep '^wheel:' "$keep/built.log" | sed 's/^wheel: //') |
| without a compiler: \`sparcl info\` | backend native $(native install-without) |
| without a compiler: \`make test\` | $(tests test-without) |

What is skipped says why in the log: without a compiler that is what needs the compiled part.
END
echo "all is well: docs/fresh.md"
