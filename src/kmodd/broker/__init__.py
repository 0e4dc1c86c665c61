"""Requests become loads: any number at once, nested to any depth, each answered once and truly."""
