"""Pages of runs and comparisons: one HTML file each, which shows everything without network and without scripts."""
