"""The network, its matcher and its criterion."""
