"""Qwen3-VL: vision tower with DeepStack, text decoder with interleaved M-RoPE, Hugging Face weights in and out."""
