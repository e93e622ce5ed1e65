"""What TensorFlow writes to disk: SavedModels, meta graphs and checkpoints. The SDK reads them, and the command line."""
