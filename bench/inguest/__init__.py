"""What runs in a guest, in a fork of the lab's agent for each call."""
