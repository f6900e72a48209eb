"""The official sources: which images, from where, fetched with resume and checked."""
