"""A module as a file: ELF, its compression, its signature."""
