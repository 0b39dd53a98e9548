"""The release, where every package can read it."""

RELEASE = "0.1.0"
