"""What is installed: the index of /lib/modules/RELEASE, modprobe.d, and plans."""
