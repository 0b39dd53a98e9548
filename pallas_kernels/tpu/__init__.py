"""What layouts for TPU share: plans of products, and how kernels are called."""
