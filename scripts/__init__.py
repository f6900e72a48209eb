"""What a person runs by hand, as `python -m scripts.NAME`; none of it is needed to train, evaluate or predict.

Report: fill_tables, make_figures, store_outputs, with their parts in `report/`.
Exploration: search, baselines, diagnose_detection, held_out_losses, probe_features.
Publishing: publish_weights, make_manifest, pack_dialogs, audit.
"""
