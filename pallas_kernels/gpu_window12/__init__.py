"""BF16 on Hopper at 12 bits a weight."""
