"""Which modules that came by themselves go again, and why: pure, from a snapshot to verdicts."""
