"""Runs cases made with TensorFlow against a served coordinator and compares the gradients."""
