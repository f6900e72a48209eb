"""Where one split of one task lies on disk, and reading its annotations."""
