"""What a model takes on an accelerator that need not be here: bytes, bounds on speed, and whether its steps compile."""
