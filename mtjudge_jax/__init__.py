"""Train, evaluate and use a vision-language judge by multi-task reinforcement learning."""
