#!/usr/bin/env bash
# Run a command as root where the stack's parts can become other users, and leave the machine as it was: in a mount namespace of its
# own, /etc gets a layer in memory with the accounts truing-<office> and truing-attacker, and so does each folder on the way to the
# interpreter and this repository that other users may not pass (/root). What is written to those folders is forgotten at the end;
# the data folder has to lie elsewhere. Processes that the command leaves running keep the namespace.
# Usage: other_users.sh COMMAND [ARG ...]      (needs root, the right to unshare and to mount overlays, and useradd)
# TRUING_ACCOUNTS__* are set for the command. Exit 77 with one line if that can't be had here, else the command's own exit status.
set -uo pipefail
if [ $# -lt 1 ]; then echo "usage: $0 COMMAND [ARG ...]" >&2; exit 2; fi
missing() { echo "other users: expected $1, got $2; run as root on Linux, in a container with --privileged" >&2; exit 77; }

if [ "${1:-}" != --inside ]; then
  [ "$(id -u)" = 0 ] || missing "to be root" "$(id -un)"
  for tool in unshare setpriv mount useradd groupadd usermod; do
    command -v "$tool" > /dev/null || PATH=$PATH:/usr/sbin:/sbin
    command -v "$tool" > /dev/null || missing "the command $tool" "none"
  done
  unshare --mount true 2> /dev/null || missing "the right to unshare mounts" "no"
  exec unshare --mount --propagation private -- bash "$0" --inside "$@"
fi
shift

# layers: one tmpfs for all of them, which lives as long as what is mounted on it
layers=$(mktemp -d) || exit 77
mount -t tmpfs -o mode=0711,size=64m layers "$layers" || missing "to mount a tmpfs" "no"
number=0
layer() { # what is written below $1 from now on stays in memory
  number=$((number + 1))
  mkdir -p "$layers/$number/upper" "$layers/$number/work"
  chown --reference="$1" "$layers/$number/upper" && chmod --reference="$1" "$layers/$number/upper"
  mount -t overlay -o "lowerdir=$1,upperdir=$layers/$number/upper,workdir=$layers/$number/work" layer "$1" 2> /dev/null \
    || missing "to lay a folder in memory over $1" "no (is overlay in this kernel, and $1 no overlay itself?)"
}

here=$(cd "$(dirname "$0")/.." && pwd -P)
python=$here/.venv/bin/python
[ -x "$python" ] || python=$(command -v python3)
layer /etc
offices="registry prefect trainer ingest steward gateway broker"
{
  for name in $offices attacker; do
    account=truing-$name
    getent group "$account" > /dev/null || groupadd --system "$account" || exit 1
    getent passwd "$account" > /dev/null \
      || useradd --system --no-create-home --no-log-init --home-dir /nonexistent --shell /bin/sh --gid "$account" "$account" || exit 1
  done
  usermod --append --groups truing-ingest,truing-trainer truing-steward # reads the vault, writes the lake
  usermod --append --groups truing-trainer truing-ingest                # writes the lake
} || missing "to make accounts in a copy of /etc" "no"
for name in $offices; do export "TRUING_ACCOUNTS__${name^^}=truing-$name"; done

# folders that others may not pass, from the top: what lies below a layer is changed in it
covered=
for target in "$here" "$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')"; do
  way=
  rest=${target#/}
  while [ -n "$rest" ]; do
    way=$way/${rest%%/*}
    case $rest in */*) rest=${rest#*/} ;; *) rest= ;; esac
    [ -d "$way" ] || continue
    mode=$(stat -c %a "$way")
    [ $((8#$mode & 1)) = 1 ] && continue
    case $way/ in "${covered:-//}"/*) ;; *) layer "$way"; covered=$way ;; esac
    chmod o+x "$way"
  done
done
umount --lazy "$layers" && rmdir "$layers"
problem=$(cd / && setpriv --reuid=truing-attacker --regid=truing-attacker --init-groups "$python" -c 'import truing.tasks.records' 2>&1 > /dev/null) \
  || missing "another user to be able to import truing" "$(echo "$problem" | tail -1)"
exec "$@"
