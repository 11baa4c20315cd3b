#!/usr/bin/env bash
# Run a command where no route leads out (a fresh network namespace, loopback only), CI and pytest variables unset, and list every
# attempted connection outside loopback. Exit 1 if there was one, else the command's own exit status.
# Usage: no_route.sh COMMAND [ARG ...]      (needs strace, iproute2 and the right to unshare)
set -uo pipefail
if [ $# -lt 1 ]; then echo "usage: $0 COMMAND [ARG ...]" >&2; exit 2; fi
trace=$(mktemp -d)
unset CI PYTEST_CURRENT_TEST PYTEST_VERSION GITHUB_ACTIONS DO_NOT_TRACK MLFLOW_DISABLE_TELEMETRY PREFECT_SERVER_ANALYTICS_ENABLED
unshare -rn bash -c 'ip link set lo up && exec strace -f -qq --seccomp-bpf -e trace=connect,sendto,sendmsg -e signal=none -o "$0/calls" "$@"' "$trace" "$@"
status=$?
# Addresses outside 127.0.0.0/8 and ::1; netlink, unix sockets and unspecified families are no connections out.
grep -E 'sin6?_(addr|port)' "$trace/calls" | grep -vE 'inet_addr\("127\.|inet_pton\(AF_INET6, "(::1|::ffff:127\.[0-9.]+)"' \
  | grep -vE 'sin_addr=inet_addr\("0\.0\.0\.0"\)' > "$trace/outside" || true
count=$(wc -l < "$trace/outside")
total=$(grep -cE 'sin6?_addr|sin_port' "$trace/calls" || true)
echo "connections: $total on loopback and elsewhere, $count outside loopback"
if [ "$count" -gt 0 ]; then head -20 "$trace/outside"; status=1; fi
rm -rf "$trace"
exit $status
