"""Checkpoints, files that are whole or not there, devices, and errors in one sentence."""
