"""From files to packed batches: sources, formats, encoding, shards, packing, loader. Import the room's modules directly."""
