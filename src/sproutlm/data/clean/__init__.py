"""Filter, deduplicate and decontaminate text at scale, on datatrove's executors (extra ``clean``)."""
