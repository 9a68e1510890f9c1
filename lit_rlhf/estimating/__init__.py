"""What a run will need, before anything of it is loaded: memory by phase, arithmetic and time. docs/estimate.md."""
