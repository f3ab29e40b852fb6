"""How it is learned: methods, losses, alignment, features."""
