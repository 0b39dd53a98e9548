"""Resident weights back to dense arrays. `api` is what users call."""
