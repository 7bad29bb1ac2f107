"""From a trained model to text: sampling, the engine, and the terminal conversation."""
