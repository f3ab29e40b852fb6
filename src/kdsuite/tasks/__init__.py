"""What is learned: examples, prompts, scores, and the encoding of both into token ids."""
