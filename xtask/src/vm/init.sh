#!/bin/sh
# The first process of a test machine. The jobs that `cargo xtask` wants run follow in /gw/jobs.
export PATH=/usr/sbin:/usr/bin:/usr/lib/busybox HOME=/root LANG=C.UTF-8 TERM=dumb

busybox=/usr/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
$busybox mkdir -p /dev/pts /dev/shm
$busybox mount -t devpts devpts /dev/pts
$busybox mount -t tmpfs tmpfs /dev/shm
$busybox mount -t tmpfs tmpfs /run
$busybox mount -t bpf bpf /sys/fs/bpf
$busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
$busybox ln -s /proc/self/fd /dev/fd
# Applets fill the gaps; the real tools come first in PATH.
$busybox --install -s /usr/lib/busybox
hostname ghostwire-vm
ulimit -n 65536
modprobe tun
modprobe veth
ip link set lo up

# Jobs talk through the second serial port; the first is the kernel's console.
stty -F /dev/ttyS1 raw -echo

# begin NUMBER, end NUMBER EXIT-CODE: what the host reads between the jobs' own lines.
begin() { printf '\n%s begin %s\n' "$GW_MARK" "$1" >/dev/ttyS1; }
end() { printf '\n%s end %s %s\n' "$GW_MARK" "$1" "$2" >/dev/ttyS1; }

. /gw/jobs

printf '\n%s finished\n' "$GW_MARK" >/dev/ttyS1
$busybox poweroff -f
