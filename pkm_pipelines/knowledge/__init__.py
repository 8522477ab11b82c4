"""Pure functions on notes: Arrow in, Arrow out, no state of their own, so that an engine can map them."""
