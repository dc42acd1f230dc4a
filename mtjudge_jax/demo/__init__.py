"""The demo: a small data set made from photographs in the package, and a small base model to train on it."""
