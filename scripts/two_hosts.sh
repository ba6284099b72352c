#!/bin/bash
# Two hosts on one machine: network namespaces with a cable between them, each with a name and a /dev/shm of its own. For root, on Linux.
#
#     bash scripts/two_hosts.sh mpiexec -n 2 python -m gpt.train …
#     RATE=100mbit bash scripts/two_hosts.sh …          a slower cable
#
# Runs the command on the first host. Without further options mpiexec starts ranks on both, by turns.
set -e
folder=$(mktemp -d)
remove() { for n in 1 2; do ip netns del tensorlite$n 2>/dev/null || true; done; rm -rf "$folder"; }
trap remove EXIT
for n in 1 2; do ip netns add tensorlite$n; done
ip link add cable netns tensorlite1 type veth peer name cable netns tensorlite2
printf '127.0.0.1 localhost\n10.9.0.1 host1\n10.9.0.2 host2\n' >"$folder/hosts"
for n in 1 2; do
    ip -n tensorlite$n addr add 10.9.0.$n/24 dev cable
    ip -n tensorlite$n link set lo up
    ip -n tensorlite$n link set cable up
    [ -z "$RATE" ] || ip netns exec tensorlite$n tc qdisc add dev cable root tbf rate "$RATE" burst 64kb latency 1s
done
until ip -n tensorlite1 link show cable | grep -q "state UP"; do sleep 0.1; done
cat >"$folder/ssh" <<END
#!/bin/bash
# [OPTION…] HOST COMMAND…: what ssh would do
while [[ \$1 == -* ]]; do shift; done
host=\$1; shift
exec ip netns exec tensorlite\${host#host} unshare --uts --mount bash -c "hostname \$host; mount --bind $folder/hosts /etc/hosts
    mount -t tmpfs tmpfs /dev/shm; cd '$PWD'; \$*"
END
chmod +x "$folder/ssh"
printf 'host1:1\nhost2:1\n' >"$folder/machines"
export UCX_TLS=tcp,self UCX_NET_DEVICES=cable # UCX finds out that it is one machine, and would use its memory
export HYDRA_LAUNCHER=ssh HYDRA_LAUNCHER_EXEC="$folder/ssh" HYDRA_HOST_FILE="$folder/machines"
"$folder/ssh" host1 "$(printf '%q ' "$@")"
