def is_compressed(x): return False
