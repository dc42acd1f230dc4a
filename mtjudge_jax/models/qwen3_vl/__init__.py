"""Qwen3-VL: dense vision-language models from Hugging Face folders."""
