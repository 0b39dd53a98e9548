"""BF16 on TPU at 12 bits a weight."""
