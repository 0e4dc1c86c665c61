"""May this requester have this module: rules, decisions, and what ships with kmodd."""
