#!/usr/bin/env bash
# A SLURM cluster of one node on loopback, for as long as a command runs: cluster.sh COMMAND...
# Needs Debian's slurm-wlm and munge (apt-get install slurm-wlm munge). Everything it writes, keys and sockets included,
# lies in one temporary folder, and it listens on 127.0.0.1 alone; no system service is touched.
set -euo pipefail

for program in munged slurmctld slurmd sbatch; do
    PATH=$PATH:/usr/sbin command -v $program >/dev/null || {
        echo "$program is missing: apt-get install slurm-wlm munge" >&2
        exit 2
    }
done
PATH=$PATH:/usr/sbin
dir=$(mktemp -d)
user=$(id -un)
node=$(hostname -s)
memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
port=$((20000 + RANDOM % 20000))

stop() {
    for pid in slurmd slurmctld munged; do
        if [ -s "$dir/$pid.pid" ]; then kill "$(cat "$dir/$pid.pid")" 2>/dev/null || true; fi
    done
    sleep 1
    rm -rf "$dir"
}
trap stop EXIT

chmod 755 "$dir" # munged refuses a socket in a folder that others cannot enter
mkdir -m 755 "$dir/munge" "$dir/state" "$dir/spool"
(umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
munged --force --num-threads=2 --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
    --pid-file="$dir/munged.pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"

# A requeued job waits until its credential has expired: ten seconds here, two minutes by default.
export SLURM_CONF=$dir/slurm.conf
cat >"$SLURM_CONF" <<END
ClusterName=loopback
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=10
CredType=cred/munge
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
ReturnToService=2
KillWait=30
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=short Nodes=ALL Default=NO MaxTime=10 State=UP
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
slurmctld
slurmd
for _ in $(seq 30); do
    if sinfo --noheader --format=%T 2>/dev/null | grep -q idle; then ready=yes && break; fi
    sleep 1
done
if [ -z "${ready:-}" ]; then
    tail -n 20 "$dir"/slurmctld.log "$dir"/slurmd.log >&2
    exit 1
fi
"$@"
