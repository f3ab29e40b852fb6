"""What the teacher says about an example, asked once and cached."""
