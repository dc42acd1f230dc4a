"""Answers of a model to the training split, kept where the labels say that they are right: data for SFT and for DPO."""

KEEP = ("right", "hard", "pairs")  # which prompts are kept, see choosing.py
CHOOSE = ("shortest", "voted")  # which of the right answers to a prompt
BALANCE = ("labels", "tasks", "none")  # what is kept equally often
