"""What this machine gives: training steps, loading and sharding, each beside its limit."""
