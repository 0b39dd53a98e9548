"""What layouts for Hopper GPUs share: WGMMA's order, the streamed product, its plan and tuning."""
