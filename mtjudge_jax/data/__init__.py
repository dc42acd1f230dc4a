"""Prepared records, images, tokenizers, rows and batches on the host; nothing here imports jax."""
