"""Grids of trainings and the tables of their results."""
