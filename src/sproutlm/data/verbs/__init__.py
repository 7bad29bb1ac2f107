"""Verbs on data files: validate, convert, split, sample, mix, balance. Rows go in, rows come out, and each is counted."""
