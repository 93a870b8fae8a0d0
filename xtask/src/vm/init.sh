#!/bin/busybox sh
# First process of the machine: makes a small system, runs /bin/main, powers off.
# Kernel log goes to the first serial port, everything else to the second.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=${TERM:-linux}
/bin/busybox --install -s /bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
# A target directory may lie in one of these, and a mount would hide it.
for directory in /tmp /run; do
    [ -n "$(ls -A "$directory")" ] || mount -t tmpfs -o mode=1777 tmpfs "$directory"
done
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up

while read -r device directory; do
    mount -t ext4 "$device" "$directory"
done </etc/disks

# Where the kernel looks for a loader of modules.
ln -s /bin/busybox /sbin/modprobe

. /etc/environment
if [ -n "$VM_SHELL" ]; then
    echo "Type 'suite' to run the tests, 'exit' to power off, Ctrl-a x to pull the plug."
    setsid cttyhack sh -l
else
    # Neither newline translation nor echo: the log holds what the tests wrote.
    stty -F "/dev/$VM_PORT" raw -echo
    /bin/main </dev/null >"/dev/$VM_PORT" 2>&1
    printf '\nVM-EXIT %s\n' "$?" >"/dev/$VM_PORT"
fi

sync
while read -r device directory; do umount "$directory"; done </etc/disks
poweroff -f
