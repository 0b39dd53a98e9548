"""Trials that take minutes to hours: what they found stands in docs/reliability.md.

python -m tests.soak.NAME --help
"""
