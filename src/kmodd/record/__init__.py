"""What happened: events, kept and told to whoever listens."""
