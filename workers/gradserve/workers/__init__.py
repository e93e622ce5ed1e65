"""Worker processes: they hold segments and run them."""
