"""What a model knows, measured: bits per byte of held-out text, and questions whose answers are checked."""
