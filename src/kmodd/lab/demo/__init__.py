"""What `make demo` shows: kmodd at work as the modprobe of a real kernel.

Run by `kmodd lab -- python -m kmodd.lab.demo`; it is the guest's kernel whose modules come and go.
"""
