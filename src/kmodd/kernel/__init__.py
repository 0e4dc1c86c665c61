"""The only place that talks to a kernel about modules."""
