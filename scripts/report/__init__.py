"""What `scripts.fill_tables` and `scripts.make_figures` put into README and report."""
