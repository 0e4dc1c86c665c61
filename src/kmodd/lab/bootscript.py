"""The guest's init: two busybox shell scripts, before and after the change of root.

Both read `lab.conf`, assignments that `kmodd.lab.initramfs` writes with every value quoted.
A line `kmodd-lab: REASON` in the kernel log tells the lab why a boot ended.
"""

STAGE1 = r"""#!/bin/sh
# PID 1 in the initramfs: makes the host's files the root, read-only below a tmpfs that takes writes.
export PATH=/bin
. /lab.conf

die() {
	echo "<1>kmodd-lab: $*" >/dev/kmsg
	poweroff -f
	sleep 60
}

mount -t devtmpfs -o mode=755 dev /dev
mount -t proc proc /proc
for module in $BOOT_MODULES; do
	insmod "/modules/$module" || die "the kernel module $module does not load"
done

case $HOST_FS in
hostfs) mount -t hostfs -o ro host /host ;;
9p)
	mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=262144 host /host
	;;
esac || die "the files of the host cannot be mounted ($HOST_FS)"

mount -t tmpfs -o mode=755 overlay /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work overlay /new ||
	die "overlayfs does not take the files of the host as its lower layer"

mount --move /dev /new/dev
mount --move /proc /new/proc
mount -t sysfs sysfs /new/sys
mkdir -p /new/dev/pts /new/dev/shm
ln -s /proc/self/fd /new/dev/fd
ln -s /proc/self/fd/0 /new/dev/stdin
ln -s /proc/self/fd/1 /new/dev/stdout
ln -s /proc/self/fd/2 /new/dev/stderr
mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev shm /new/dev/shm
mount -t tmpfs -o mode=755,nosuid,nodev run /new/run
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
if [ -d /new/sys/kernel/tracing ]; then
	mount -t tracefs tracefs /new/sys/kernel/tracing
fi
# Not the host's: a daemon in the guest keeps a journal of its own.
if [ -d /new/var/lib/kmodd ]; then
	mount -t tmpfs -o mode=755 state /new/var/lib/kmodd
fi

# The running kernel's modules, where everybody looks for them; writable, for depmod.
installed=/new/usr/lib/modules
[ -d "$installed" ] || installed=/new/lib/modules
mkdir -p "$installed"
if [ "$MODULE_TREE" != "/lib/modules/$RELEASE" ] &&
	[ "$MODULE_TREE" != "/usr/lib/modules/$RELEASE" ]; then
	mkdir -p "$installed/$RELEASE"
	mount --bind "/new$MODULE_TREE" "$installed/$RELEASE" ||
		die "the modules in $MODULE_TREE cannot be mounted"
fi
if [ -d /index ]; then
	cp /index/* "$installed/$RELEASE/"
fi

mkdir -p /new/run/kmodd-lab /new/run/lock
cp /bin/busybox /stage2 /lab.conf /new/run/kmodd-lab/
hostname kmodd-lab
ip link set lo up
exec switch_root /new /run/kmodd-lab/busybox sh /run/kmodd-lab/stage2
"""

STAGE2 = r"""# PID 1 in the guest: starts the agent and reaps what loses its parent.
. /run/kmodd-lab/lab.conf
busybox=/run/kmodd-lab/busybox
export PATH="$AGENT_PATH" HOME=/root
[ -z "$AGENT_PYTHONPATH" ] || export PYTHONPATH="$AGENT_PYTHONPATH"

cd /
"$AGENT_PYTHON" -m kmodd.lab.agent "$CHANNEL" </dev/null >/dev/kmsg 2>&1 &
agent=$!
# The shell's wait collects every child there is, adopted ones too.
wait "$agent"
echo "<1>kmodd-lab: the agent ended with status $?" >/dev/kmsg
"$busybox" poweroff -f
"""
