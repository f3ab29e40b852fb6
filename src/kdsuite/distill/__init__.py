"""How it is learned: losses, alignment, features, methods and the trainer."""
