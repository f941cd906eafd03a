"""The networks, their streaming contract, samplers and checkpoints."""
