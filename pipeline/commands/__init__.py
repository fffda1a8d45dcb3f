"""The commands, by what they work on. Each reads its options first, then imports what it needs."""
