"""What nothing else imports but by name."""
