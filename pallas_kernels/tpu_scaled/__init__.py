"""FP8, INT8 and INT4 with scales on TPU."""
