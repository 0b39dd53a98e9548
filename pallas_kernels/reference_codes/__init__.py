"""Every block format in plain JAX."""
