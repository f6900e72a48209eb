"""Configuration, stage loop, evaluation, checkpoints and the command lines."""
