"""Every setting with its default, and how files and the command line change it."""
