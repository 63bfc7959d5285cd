"""Implementations of the neuron's forward and backward pass, one file a backend; tensors in, tensors out."""
