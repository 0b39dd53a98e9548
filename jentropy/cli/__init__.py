"""The command line: one file per command, with its arguments and what it prints, nothing else.

A command is a module with `HELP`, `ARGUMENTS` and `run(arguments) -> int`; to add one,
write it and give it a line in `main.COMMANDS`.
"""
