"""The objective, the loop, the optimiser, the plan, the checkpoints."""
