"""kmodd measured beside what it replaces: `python -m bench`, or `make bench`."""
