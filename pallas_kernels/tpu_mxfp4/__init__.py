"""MXFP4 on TPU."""
