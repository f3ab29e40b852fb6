"""What is done for a plan: each job gathers its inputs and calls plain functions with them."""
