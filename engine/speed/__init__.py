"""Time, memory and operations of networks."""
