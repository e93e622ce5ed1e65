"""What TensorFlow writes to disk, for the SDK and the command line: SavedModels, meta graphs and checkpoints."""
