"""FP8, FP4, INT8 and INT4 with scales on Hopper."""
