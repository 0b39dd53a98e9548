"""BF16 in plain JAX at 12 bits a weight."""
