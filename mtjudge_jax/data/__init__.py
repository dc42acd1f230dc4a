"""Records, images, prompts and batches on the host; nothing here imports jax."""
