"""What this machine reaches: training steps, loading and sharding, each beside its limit."""
