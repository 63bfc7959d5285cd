"""What `train.py` is made of: settings, data, the training loop, its checkpoints and its results."""
