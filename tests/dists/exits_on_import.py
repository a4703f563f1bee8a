"""Prints on stdout and leaves."""

print("hello from a plugin")
raise SystemExit(3)
