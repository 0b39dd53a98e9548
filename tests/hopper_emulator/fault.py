"""What a kernel does that the ISA does not allow, or that a chip may do differently."""


class Fault(Exception):
    """One such thing, in words."""
