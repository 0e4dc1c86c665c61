"""Where requests come from: the kernel's helper and the varlink API."""
