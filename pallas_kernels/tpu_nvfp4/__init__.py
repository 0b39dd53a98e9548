"""NVFP4 on TPU."""
